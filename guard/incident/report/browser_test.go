package report

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/log"
	"github.com/chromedp/cdproto/network"
	devpage "github.com/chromedp/cdproto/page"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"
	"github.com/google/go-cmp/cmp"
)

// browser starts Chromium. Where it is missing the test is skipped, or fails if
// LVSGUARD_PRIVILEGED is 1.
func browser(t *testing.T) context.Context {
	t.Helper()
	const program = "chromium-headless-shell"
	if _, err := exec.LookPath(program); err != nil {
		if os.Getenv("LVSGUARD_PRIVILEGED") == "1" {
			t.Fatalf("%v (this run must have it: lab/setup installs it)", err)
		}
		t.Skip(err)
	}
	// The test's own context ends before its cleanups, and would leave the browser
	// without the one that tells it to end.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), 60*time.Second)
	t.Cleanup(cancel)
	ctx, cancel = chromedp.NewExecAllocator(ctx, append(chromedp.DefaultExecAllocatorOptions[:],
		chromedp.ExecPath(program), chromedp.NoSandbox, chromedp.WSURLReadTimeout(30*time.Second))...)
	t.Cleanup(cancel)
	ctx, _ = chromedp.NewContext(ctx)
	t.Cleanup(func() {
		if err := chromedp.Cancel(ctx); err != nil {
			t.Logf("end %s: %v", program, err) // its files may still be written to
		}
	})
	if err := chromedp.Run(ctx); err != nil {
		t.Fatalf("start %s: %v", program, err)
	}
	return ctx
}

// A visit is what a browser had to say of a page.
type visit struct {
	mu       sync.Mutex
	requests []string
	said     []string
}

// open opens a page in a tab of its own, in the width of a screen.
func open(t *testing.T, browser context.Context, path string, width int64) (context.Context, *visit) {
	t.Helper()
	ctx, cancel := chromedp.NewContext(browser)
	t.Cleanup(cancel)
	v := new(visit)
	chromedp.ListenTarget(ctx, func(event any) {
		v.mu.Lock()
		defer v.mu.Unlock()
		switch e := event.(type) {
		case *network.EventRequestWillBeSent:
			v.requests = append(v.requests, e.Request.URL)
		case *runtime.EventConsoleAPICalled:
			v.said = append(v.said, fmt.Sprintf("console: %v", e.Args))
		case *runtime.EventExceptionThrown:
			v.said = append(v.said, "exception: "+e.ExceptionDetails.Error())
		case *log.EventEntryAdded:
			v.said = append(v.said, "log: "+e.Entry.Text)
		case *devpage.EventJavascriptDialogOpening:
			v.said = append(v.said, "dialog: "+e.Message)
			go chromedp.Run(ctx, devpage.HandleJavaScriptDialog(true))
		}
	})
	err := chromedp.Run(ctx, network.Enable(), log.Enable(),
		emulation.SetDeviceMetricsOverride(width, 800, 1, width < 500),
		chromedp.Navigate("file://"+path))
	if err != nil {
		t.Fatalf("open %s: %v", path, err)
	}
	return ctx, v
}

func savePage(t *testing.T, name string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name+".html")
	if err := os.WriteFile(path, []byte(pageOf(t, fixtures()[name])), 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

// drawn tells of the page as it stands there.
const lookAtPage = `(() => {
	const box = e => e.getBoundingClientRect();
	const width = document.documentElement.clientWidth;
	const lines = [...document.querySelectorAll("svg.plot path.line")];
	const wide = [...document.querySelectorAll("main, main *")].filter(e => box(e).right > width + 1 || box(e).left < -1);
	return {
		scrollWidth: document.documentElement.scrollWidth,
		lines: lines.length,
		flat: lines.filter(e => !(box(e).width > 50) || e.getTotalLength() < 50).map(e => e.getAttribute("class")),
		lost: lines.filter(e => { const b = box(e), p = box(e.closest("figure")); return b.left < p.left - 2 || b.right > p.right + 2 || b.top < p.top || b.bottom > p.bottom }).map(e => e.getAttribute("class")),
		wide: wide.map(e => e.tagName + "." + e.getAttribute("class")),
		elements: [...new Set([...document.querySelectorAll("*")].map(e => e.localName))].sort().join(" "),
		handlers: [...document.querySelectorAll("*")].flatMap(e => e.getAttributeNames()).filter(n => n.startsWith("on") || n == "style" || n == "src"),
		links: [...document.querySelectorAll("[href]")].map(e => e.getAttribute("href")),
		title: document.title,
		small: [...document.querySelectorAll("main *")].filter(e => e.childNodes.length && [...e.childNodes].some(c => c.nodeType == 3 && c.data.trim()) && parseFloat(getComputedStyle(e).fontSize) < 12).map(e => e.tagName),
	};
})()`

type pageLook struct {
	ScrollWidth, Lines      int
	Flat, Lost, Wide, Small []string
	Handlers, Links         []string
	Elements, Title         string
}

// Whatever stands in a record, the page is made of these elements.
const elements = "b body br caption dd defs details div dl dt figcaption figure footer h1 h2 h3 head header html li line link main meta ol p path pattern pre rect section span style summary svg table tbody td text th thead time title tr ul code"

// The page is drawn whole, on a phone and on a desk, says nothing to the
// console, asks nobody for anything, and has no element but its own.
func TestBrowser(t *testing.T) {
	chromium := browser(t)
	for _, tt := range []struct {
		name  string
		lines int // of plots
	}{{"dropped", 11}, {"observed", 11}, {"cut", 2}, {"hostile", 11}} {
		path := savePage(t, tt.name)
		for _, width := range []int64{375, 1280} {
			t.Run(fmt.Sprintf("%s-%d", tt.name, width), func(t *testing.T) {
				ctx, v := open(t, chromium, path, width)
				var look pageLook
				if err := chromedp.Run(ctx, chromedp.Evaluate(lookAtPage, &look)); err != nil {
					t.Fatal(err)
				}
				if look.ScrollWidth > int(width) || len(look.Wide) > 0 {
					t.Errorf("%d pixels wide; beyond the edge: %v", look.ScrollWidth, look.Wide)
				}
				if look.Lines != tt.lines || len(look.Flat) > 0 || len(look.Lost) > 0 {
					t.Errorf("%d lines are drawn, want %d; nothing is to be seen of %v, outside its plot is %v", look.Lines, tt.lines, look.Flat, look.Lost)
				}
				if len(look.Small) > 0 {
					t.Errorf("too small to read: %v", look.Small)
				}
				for e := range strings.FieldsSeq(look.Elements) {
					if !strings.Contains(" "+elements+" ", " "+e+" ") {
						t.Errorf("a foreign element: %s", e)
					}
				}
				if len(look.Handlers) > 0 {
					t.Errorf("attributes that can do something: %v", look.Handlers)
				}
				if diff := cmp.Diff([]string{"data:,"}, look.Links); diff != "" {
					t.Errorf("links (-want +got):\n%s", diff)
				}
				if !strings.Contains(look.Title, "flood on") {
					t.Errorf("the title is %q", look.Title)
				}
				v.mu.Lock()
				defer v.mu.Unlock()
				if diff := cmp.Diff([]string{"file://" + path}, v.requests); diff != "" {
					t.Errorf("requests (-want +got):\n%s", diff)
				}
				if len(v.said) > 0 {
					t.Errorf("the browser says: %v", v.said)
				}
			})
		}
	}
}
