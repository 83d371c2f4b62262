package keepalived

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// Bounds of what a configuration may become when it is read.
const (
	maxIncludeDepth = 32
	maxLines        = 200_000 // after ~SEQ and definitions
	maxLineLength   = 8 << 10
	maxFileSize     = 16 << 20
	maxSubstitution = 64 // one within the other
)

// lineSource turns files into the lines that keepalived's own parser would see:
// without comments, conditions (@id) decided, $definitions substituted, ~SEQ
// repeated, included files in their place.
type lineSource struct {
	id    string
	emit  func(at Place, text string)
	skip  func(at Place, text, reason string)
	read  func(path string) ([]byte, error)
	glob  func(pattern string) ([]string, error)
	files []string

	definitions map[string][]string // name: the lines of its value
	including   []string            // files now being read, outermost first
	lines       int
}

// file handles the contents of one file. An error ends the whole reading.
func (s *lineSource) file(path string, data []byte) (err error) {
	if !slices.Contains(s.files, path) {
		s.files = append(s.files, path)
	}
	s.including = append(s.including, path)
	defer func() { s.including = s.including[:len(s.including)-1] }()

	var defining string // the name whose value goes on in this line
	number := 0
	for line := range strings.Lines(string(data)) {
		number++
		at := Place{path, number}
		text, continued := strip(strings.TrimRight(line, "\r\n"))
		if defining == "" {
			if defining, err = s.line(at, text, continued, 0); err != nil {
				return err
			}
			continue
		}
		if text != "" {
			s.definitions[defining] = append(s.definitions[defining], text)
		}
		if !continued {
			defining = ""
		}
	}
	return nil
}

// strip removes a comment, the space around the text, and the backslash at its
// end, and tells whether that was there.
func strip(line string) (text string, continued bool) {
	line = strings.Trim(line, " \t")
	line, continued = strings.CutSuffix(line, `\`)
	var b strings.Builder
	quoted := false
scan:
	for i := 0; i < len(line); i++ {
		c := line[i]
		switch {
		case c == '"':
			quoted = !quoted
		case c == '\\' && i+1 < len(line):
			i++
			if quoted || line[i] != '#' && line[i] != '!' {
				b.WriteByte(c)
			}
			c = line[i]
		case !quoted && (c == '#' || c == '!'):
			break scan
		}
		b.WriteByte(c)
	}
	return strings.Trim(b.String(), " \t"), continued
}

// line handles one line. It returns the name of a definition that the line
// begins and the next one continues.
func (s *lineSource) line(at Place, text string, continued bool, depth int) (defining string, err error) {
	if s.lines++; s.lines > maxLines {
		return "", fmt.Errorf("%v: the configuration has more than %d lines", at, maxLines)
	}
	if text == "" {
		return "", nil
	}
	if depth > maxSubstitution || len(text) > maxLineLength {
		return "", fmt.Errorf("%v: a definition makes this line endless", at)
	}
	if condition, ok := strings.CutPrefix(text, "@"); ok {
		end := strings.IndexAny(condition, " \t")
		if end < 0 {
			return "", nil
		}
		id, unless := strings.CutPrefix(condition[:end], "^")
		if (id == s.id) == unless {
			return "", nil
		}
		return s.line(at, strings.TrimLeft(condition[end:], " \t"), continued, depth+1)
	}
	if name, value, ok := cutDefinition(text); ok {
		s.definitions[name] = []string{value}
		if continued {
			if value == "" {
				s.definitions[name] = nil
			}
			return name, nil
		}
		return "", nil
	}
	if strings.HasPrefix(text, "~") {
		return "", s.sequence(at, text, depth)
	}
	if substituted, ok := s.substitute(text); ok {
		for _, text := range substituted {
			text, continued := strip(text)
			if defining, err = s.line(at, text, continued, depth+1); err != nil {
				return "", err
			}
		}
		return defining, nil
	}
	if pattern, ok := cutInclude(text); ok {
		return "", s.include(at, pattern)
	}
	s.emit(at, text)
	return "", nil
}

// cutDefinition reads $NAME=VALUE.
func cutDefinition(text string) (name, value string, ok bool) {
	if !strings.HasPrefix(text, "$") {
		return "", "", false
	}
	name = leadingName(text[1:])
	rest := strings.TrimLeft(text[1+len(name):], " \t")
	if name == "" || !strings.HasPrefix(rest, "=") {
		return "", "", false
	}
	return name, strings.Trim(rest[1:], " \t"), true
}

// leadingName returns the name of a definition that text begins with.
func leadingName(text string) string {
	for i := 0; i < len(text); i++ {
		c := text[i]
		letter := c == '_' || 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z'
		if !letter && (i == 0 || c < '0' || c > '9') {
			return text[:i]
		}
	}
	return text
}

// substitute replaces the first $NAME or ${NAME} that is defined. A definition
// of several lines is only replaced at the end of the text.
func (s *lineSource) substitute(text string) (lines []string, ok bool) {
	for i := strings.IndexByte(text, '$'); i >= 0 && i < len(text); i++ {
		if text[i] != '$' {
			continue
		}
		name, rest, ok := cutParameter(text[i+1:])
		if !ok {
			continue
		}
		value, ok := s.value(name)
		if !ok || len(value) > 1 && rest != "" {
			continue
		}
		if len(value) == 0 {
			value = []string{""}
		}
		lines = slices.Clone(value)
		lines[0] = text[:i] + lines[0]
		lines[len(lines)-1] += rest
		return lines, true
	}
	return nil, false
}

// cutParameter reads what stands after a $: NAME before a separator, or {NAME}.
func cutParameter(text string) (name, rest string, ok bool) {
	if braced, is := strings.CutPrefix(text, "{"); is {
		name = leadingName(braced)
		rest, ok = strings.CutPrefix(braced[len(name):], "}")
		return name, rest, ok && name != ""
	}
	name = leadingName(text)
	rest = text[len(name):]
	return name, rest, name != "" && (rest == "" || strings.ContainsRune(" \t,)", rune(rest[0])))
}

// value returns a definition, the predefined ones included. _RANDOM stays as it
// is: nobody knows what keepalived drew.
func (s *lineSource) value(name string) ([]string, bool) {
	if value, ok := s.definitions[name]; ok {
		return value, true
	}
	switch name {
	case "_PWD":
		return []string{filepath.Dir(s.including[len(s.including)-1])}, true
	case "_INSTANCE":
		return []string{s.id}, true
	case "_HASH":
		return []string{`\#`}, true
	case "_BANG":
		return []string{`\!`}, true
	default:
		return nil, false
	}
}

// sequence handles ~SEQ(var, start, step, end) TEXT and ~SEQx, its hexadecimal
// twin.
func (s *lineSource) sequence(at Place, text string, depth int) error {
	rest, ok := strings.CutPrefix(text, "~SEQ")
	base, hex := 10, false
	if ok {
		if rest, hex = strings.CutPrefix(rest, "x"); hex {
			base = 16
		}
	}
	head, body, closed := strings.Cut(rest, ")")
	name, numbers, _ := strings.Cut(strings.TrimLeft(head, " \t"), ",")
	name, opened := strings.CutPrefix(name, "(")
	name = strings.Trim(name, " \t")
	from, step, to, err := s.bounds(numbers)
	if !ok || !opened || !closed || name == "" || leadingName(name) != name || err != nil || hex && (from < 0 || to < 0) {
		s.skip(at, text, "not a sequence that is understood here")
		return nil
	}
	body = strings.TrimLeft(body, " \t")
	for n := from; step > 0 && n <= to || step < 0 && n >= to; n += step {
		s.definitions[name] = []string{strconv.FormatInt(n, base)}
		if _, err := s.line(at, body, false, depth+1); err != nil {
			return err
		}
	}
	return nil
}

// bounds reads the numbers of a sequence: end, or start and end, or start, step
// and end.
func (s *lineSource) bounds(text string) (from, step, to int64, err error) {
	for range maxSubstitution {
		// A parameter ends at a comma or the bracket, which is cut here.
		lines, ok := s.substitute(text)
		if !ok || len(lines) != 1 {
			break
		}
		text = lines[0]
	}
	var n []int64
	for word := range strings.SplitSeq(text, ",") {
		v, err := strconv.ParseInt(strings.Trim(word, " \t"), 0, 32)
		if err != nil {
			return 0, 0, 0, err
		}
		n = append(n, v)
	}
	direction := func(up bool) int64 {
		if up {
			return 1
		}
		return -1
	}
	switch len(n) {
	case 1:
		return direction(n[0] >= 0), direction(n[0] >= 1), n[0], nil
	case 2:
		return n[0], direction(n[0] <= n[1]), n[1], nil
	case 3:
		if n[1] == 0 || (n[0] < n[2] && n[1] < 0) || (n[0] > n[2] && n[1] > 0) {
			return 0, 0, 0, errors.New("the step never gets to the end")
		}
		return n[0], n[1], n[2], nil
	default:
		return 0, 0, 0, errors.New("one to three numbers are wanted")
	}
}

// cutInclude reads include FILE and its variants includer, includem, includew,
// includeb and includea, which differ only in what keepalived complains about.
func cutInclude(text string) (pattern string, ok bool) {
	rest, ok := strings.CutPrefix(text, "include")
	if !ok {
		return "", false
	}
	rest = strings.TrimLeft(rest, "rmwba")
	if rest == "" || rest[0] != ' ' && rest[0] != '\t' || len(text)-len(rest) > len("include")+1 {
		return "", false
	}
	return strings.Trim(rest, " \t"), true
}

// include reads the files that a pattern names. As keepalived does, it goes on
// without those that are not there or cannot be read, and says so.
func (s *lineSource) include(at Place, pattern string) error {
	if len(s.including) >= maxIncludeDepth {
		return fmt.Errorf("%v: included %d deep", at, maxIncludeDepth)
	}
	if !filepath.IsAbs(pattern) {
		pattern = filepath.Join(filepath.Dir(at.File), pattern)
	}
	if strings.ContainsRune(pattern, '{') {
		s.skip(at, pattern, "braces are not understood here: include the files one by one, or with *")
		return nil
	}
	paths, err := s.glob(pattern)
	if err != nil || len(paths) == 0 {
		s.skip(at, pattern, "there is no such file")
	}
	for _, path := range paths {
		if slices.Contains(s.including, path) {
			return fmt.Errorf("%v: %s includes itself", at, path)
		}
		data, err := s.read(path)
		if err != nil {
			s.skip(at, path, err.Error())
			continue
		}
		if err := s.file(path, data); err != nil {
			return err
		}
	}
	return nil
}

// readFile reads a regular file that is not executable: keepalived takes no other.
func readFile(path string) ([]byte, error) {
	info, err := os.Stat(path)
	switch {
	case err != nil:
		return nil, err
	case !info.Mode().IsRegular():
		return nil, fmt.Errorf("%s is not a regular file", path)
	case info.Mode().Perm()&0o111 != 0:
		return nil, fmt.Errorf("%s is executable, which keepalived does not take: chmod a-x", path)
	case info.Size() > maxFileSize:
		return nil, fmt.Errorf("%s is larger than %d MiB", path, maxFileSize>>20)
	}
	return os.ReadFile(path)
}
