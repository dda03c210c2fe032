package cmd

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"sync"
)

// wordsHandler writes what the log has for people, a line each: "warning: VM web01: what happened: why (disk os)". With --verbose the log is
// written with times and levels instead.
type wordsHandler struct {
	mu    *sync.Mutex
	w     io.Writer
	attrs []slog.Attr
}

func newWordsHandler(w io.Writer) *wordsHandler { return &wordsHandler{mu: new(sync.Mutex), w: w} }

func (h *wordsHandler) Enabled(_ context.Context, l slog.Level) bool { return l >= slog.LevelWarn }

func (h *wordsHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	return &wordsHandler{h.mu, h.w, append(h.attrs[:len(h.attrs):len(h.attrs)], attrs...)}
}

// WithGroup is not needed: nothing here groups.
func (h *wordsHandler) WithGroup(string) slog.Handler { return h }

func (h *wordsHandler) Handle(_ context.Context, r slog.Record) error {
	vm, why, rest := "", "", []string(nil)
	add := func(a slog.Attr) bool {
		switch value := a.Value.String(); {
		case a.Key == "vm":
			vm = "VM " + value + ": "
		case a.Key == "error":
			why = ": " + value
		case value != "":
			rest = append(rest, strings.ReplaceAll(a.Key, "_", " ")+" "+value)
		}
		return true
	}
	for _, a := range h.attrs {
		add(a)
	}
	r.Attrs(add)
	level := "warning: "
	if r.Level >= slog.LevelError {
		level = "error: "
	}
	if vm != "" && strings.Contains(why, vm) { // the error names it
		vm = ""
	}
	text := level + vm + r.Message + why
	if len(rest) > 0 {
		text += " (" + strings.Join(rest, ", ") + ")"
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	_, err := fmt.Fprintln(h.w, strings.ReplaceAll(text, "\n", "\n    "))
	return err
}
