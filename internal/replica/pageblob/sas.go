package pageblob

import (
	"fmt"
	"net/url"
	"strings"
	"time"
)

// Access is what a shared access signature (SAS) says of itself: the service refuses it outside its time, and what it does not
// permit. See "Create an account SAS" and "Create a service SAS" of the service's documentation for st, se and sp.
type Access struct {
	From  time.Time // st; zero when it is not said
	Until time.Time // se; zero when a stored access policy says it
	// Missing is the letters of the permissions that replicas need and sp does not have; "" for none, also when a stored access policy
	// has them.
	Missing string
}

// neededPermissions of a SAS: read, create, write, delete, list.
const neededPermissions = "rcwdl"

// Access returns what the SAS by which the store is entered says; ok is false when it is entered in another way.
func (s *Store) Access() (a Access, ok bool) {
	u, err := url.Parse(s.pages.URL())
	if err != nil {
		return Access{}, false
	}
	return accessOf(u.Query())
}

// accessOf reads the parameters of a SAS; ok is false when there is none.
func accessOf(q url.Values) (a Access, ok bool) {
	if q.Get("sig") == "" {
		return Access{}, false
	}
	a.From, a.Until = sasTime(q.Get("st")), sasTime(q.Get("se"))
	if sp := q.Get("sp"); sp != "" {
		for _, letter := range neededPermissions {
			if !strings.ContainsRune(sp, letter) {
				a.Missing += string(letter)
			}
		}
	}
	return a, true
}

// sasTime reads a time in one of the forms that a SAS may have it in; zero is none.
func sasTime(s string) time.Time {
	for _, form := range []string{time.RFC3339, "2006-01-02T15:04Z", time.DateOnly} {
		if t, err := time.Parse(form, s); err == nil {
			return t.UTC()
		}
	}
	return time.Time{}
}

// refused says why a SAS is refused at a time, and the way out; "" when it does not say that by itself.
func (a Access) refused(now time.Time) string {
	switch {
	case !a.Until.IsZero() && now.After(a.Until):
		return fmt.Sprintf("the SAS has ended on %s: make a new one, and put it where the site file says", a.Until.Format(time.RFC3339))
	case now.Before(a.From):
		return fmt.Sprintf("the SAS begins on %s: wait for that, or make one that begins earlier", a.From.Format(time.RFC3339))
	}
	return ""
}

// lacks says which permissions a SAS does not have, and the way out; "" when it has all.
func (a Access) lacks() string {
	if a.Missing == "" {
		return ""
	}
	return fmt.Sprintf("the SAS lacks permissions that replicas need (%s of sp=%s): make one with sp=racwdl", a.Missing, neededPermissions)
}
