package cmd

import (
	"time"

	"sitrep/internal/replica/pageblob"
)

// accessWarned is how long before its end a shared access signature is warned of.
const accessWarned = 14 * 24 * time.Hour

// accessObject is what the shared access signature of the store says of itself.
type accessObject struct {
	EndsAt  *time.Time `json:"ends_at,omitempty"`
	Missing string     `json:"missing_permissions,omitempty"`
	// Warning is what an administrator should know, "" for nothing.
	Warning string `json:"warning,omitempty"`
}

func accessObjectOf(a pageblob.Access, now time.Time) *accessObject {
	o := &accessObject{Missing: a.Missing}
	if !a.Until.IsZero() {
		o.EndsAt = &a.Until
	}
	switch {
	case o.EndsAt != nil && now.After(a.Until):
		o.Warning = "its SAS has ended on " + a.Until.Format(time.RFC3339)
	case o.EndsAt != nil && a.Until.Sub(now) < accessWarned:
		o.Warning = "its SAS ends on " + a.Until.Format(time.RFC3339)
	case a.Missing != "":
		o.Warning = "its SAS lacks the permissions " + a.Missing + " that replicas need"
	}
	return o
}

// text is the warning, "" for none.
func (o *accessObject) text() string {
	if o == nil {
		return ""
	}
	return o.Warning
}

// accessText says it, with what to do.
func (w *world) accessText() string {
	text := w.res.Access.text()
	if text == "" {
		return ""
	}
	return "store: " + text + "\n  next: make a new one with sp=racwdl, and put it where the site file says\n"
}
