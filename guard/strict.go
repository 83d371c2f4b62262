package guard

import (
	"encoding"
	"errors"
	"fmt"
	"reflect"
	"strings"

	"go.yaml.in/yaml/v3"
)

// checkKeys compares the keys of a YAML tree with the yaml tags of the struct
// that it will be decoded into, and names the first stranger, its line and
// the nearest key that exists. The YAML library's own strict mode knows
// neither the nearest key nor how to pass over what decodes itself.
func checkKeys(n *yaml.Node, into any) error {
	return walkKeys(n, reflect.TypeOf(into), 0)
}

// maxYAMLDepth bounds the walk; aliases could make a tree endless.
const maxYAMLDepth = 16

func walkKeys(n *yaml.Node, t reflect.Type, depth int) error {
	if depth > maxYAMLDepth {
		return fmt.Errorf("line %d: nested too deep", n.Line)
	}
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	if decodesItself(t) {
		return checkText(n, t)
	}
	if n.Kind == yaml.AliasNode {
		return fmt.Errorf("line %d: aliases are not supported here: write the value out", n.Line)
	}
	switch t.Kind() {
	case reflect.Struct:
		if n.Kind != yaml.MappingNode {
			if n.Tag == "!!null" {
				return nil
			}
			return fmt.Errorf("line %d: want keys and values here, as in 'key: value'", n.Line)
		}
		for i := 0; i+1 < len(n.Content); i += 2 {
			key := n.Content[i]
			field, ok := fieldOf(t, key.Value)
			if !ok {
				return unknownKey(key, t)
			}
			if err := walkKeys(n.Content[i+1], field, depth+1); err != nil {
				return err
			}
		}
	case reflect.Map:
		for i := 0; n.Kind == yaml.MappingNode && i+1 < len(n.Content); i += 2 {
			if n.Content[i].Kind != yaml.ScalarNode {
				return fmt.Errorf("line %d: want a name before the colon", n.Content[i].Line)
			}
			if err := checkText(n.Content[i], t.Key()); err != nil {
				return err
			}
			if err := walkKeys(n.Content[i+1], t.Elem(), depth+1); err != nil {
				return err
			}
		}
	case reflect.Slice:
		if n.Kind != yaml.SequenceNode {
			if n.Tag == "!!null" {
				return nil
			}
			return fmt.Errorf("line %d: want a list here, as in [a, b]", n.Line)
		}
		for _, e := range n.Content {
			if err := walkKeys(e, t.Elem(), depth+1); err != nil {
				return err
			}
		}
	}
	return nil
}

// checkText tries what decodes itself from text: its own error would not name
// the line.
func checkText(n *yaml.Node, t reflect.Type) error {
	into, ok := reflect.New(t).Interface().(encoding.TextUnmarshaler)
	if !ok || n.Kind != yaml.ScalarNode {
		return nil
	}
	if err := into.UnmarshalText([]byte(n.Value)); err != nil {
		return fmt.Errorf("line %d: %w", n.Line, err)
	}
	return nil
}

func decodesItself(t reflect.Type) bool {
	p := reflect.PointerTo(t)
	return p.Implements(reflect.TypeFor[yaml.Unmarshaler]()) || p.Implements(reflect.TypeFor[encoding.TextUnmarshaler]())
}

func tagOf(f reflect.StructField) string {
	name, _, _ := strings.Cut(f.Tag.Get("yaml"), ",")
	return name
}

func fieldOf(t reflect.Type, key string) (reflect.Type, bool) {
	for f := range t.Fields() {
		if tagOf(f) == key {
			return f.Type, true
		}
	}
	return nil, false
}

func unknownKey(key *yaml.Node, t reflect.Type) error {
	best, least := "", 1<<30
	var all []string
	for f := range t.Fields() {
		name := tagOf(f)
		all = append(all, name)
		if d := editDistance(key.Value, name); d < least {
			best, least = name, d
		}
	}
	if least <= 2+len(best)/3 {
		return fmt.Errorf("line %d: unknown key %q; did you mean %q?", key.Line, key.Value, best)
	}
	return fmt.Errorf("line %d: unknown key %q; known here: %s", key.Line, key.Value, strings.Join(all, ", "))
}

// editDistance is Levenshtein's, over bytes: the keys are ASCII.
func editDistance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := diagonal
			if a[i] != b[j] {
				cost++
			}
			diagonal = row[j+1]
			row[j+1] = min(cost, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}

// lineOf finds the line of the deepest key of path that is written.
func lineOf(n *yaml.Node, path []string) int {
	line := n.Line
	for _, want := range path {
		var next *yaml.Node
		switch n.Kind {
		case yaml.MappingNode:
			for i := 0; i+1 < len(n.Content); i += 2 {
				if n.Content[i].Value == want {
					line, next = n.Content[i].Line, n.Content[i+1]
				}
			}
		case yaml.SequenceNode:
			var i int
			if _, err := fmt.Sscanf(want, "%d", &i); err == nil && i < len(n.Content) {
				next = n.Content[i]
				line = next.Line
			}
		}
		if next == nil {
			break
		}
		n = next
	}
	return line
}

// tidyYAML says what the YAML library means without its Go types.
func tidyYAML(err error) error {
	var te *yaml.TypeError
	if !errors.As(err, &te) || len(te.Errors) == 0 {
		return errors.New(strings.TrimPrefix(err.Error(), "yaml: "))
	}
	msg := te.Errors[0]
	for _, r := range []struct{ typ, want string }{
		{"time.Duration", "a duration such as 3s or 1m"},
		{"float64", "a number"}, {"int64", "a whole number"}, {"int", "a whole number"},
		{"uint16", "a whole number up to 65535"},
		{"string", "a text"}, {"guard.Mode", "observe or auto"},
	} {
		if head, ok := strings.CutSuffix(msg, " into "+r.typ); ok {
			line, value, _ := strings.Cut(head, ": cannot unmarshal ")
			_, value, _ = strings.Cut(value, " ")
			return fmt.Errorf("%s: %s is not %s", line, value, r.want)
		}
	}
	return errors.New(msg)
}
