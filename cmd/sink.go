package cmd

import (
	"io"
	"os"
	"sync"
)

// sink is stdout or stderr as the commands see it: what cannot be written is lost, and the work goes on. The first error is
// kept for the end of the run.
type sink struct {
	mu  sync.Mutex
	w   io.Writer
	err error
}

func (s *sink) Write(b []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err == nil {
		_, s.err = s.w.Write(b)
	}
	return len(b), nil
}

// lost is why output was lost; nil when none was, or when nobody wanted to read on ("| head").
func (s *sink) lost() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if isClosedPipe(s.err) {
		return nil
	}
	return s.err
}

// sunk is w as a sink; one that is a sink stays it.
func sunk(w io.Writer) *sink {
	if s, ok := w.(*sink); ok {
		return s
	}
	return &sink{w: w}
}

// fileOf is the file that w writes to, if it is one.
func fileOf(w io.Writer) (*os.File, bool) {
	if s, ok := w.(*sink); ok {
		w = s.w
	}
	f, ok := w.(*os.File)
	return f, ok
}
