package cmd_test

import (
	"encoding/json"
	"strings"
	"testing"
)

// TestAzureProbe: what is wrong with a store is said, and stands in the way of protection until it is mended.
func TestAzureProbe(t *testing.T) {
	s := newAzureSite(t, azureContainer(t), "")
	s.write("os.raw", make([]byte, 1<<20))
	s.run(0, "check", "web01")
	var got struct {
		Store  string
		Checks []struct {
			Check         string
			Holds, Needed bool
			Detail        string
		}
		Error struct{ Code, Message string }
	}
	if err := json.Unmarshal([]byte(s.run(0, "store", "probe", "--json")), &got); err != nil {
		t.Fatal(err)
	}
	const alias = "a copy changes nothing of what it was made of" // the emulator's copies do
	if got.Store == "" || len(got.Checks) < 20 {
		t.Errorf("%+v", got)
	}
	found := false
	for _, c := range got.Checks {
		if c.Needed && !c.Holds {
			t.Errorf("%+v", c)
		}
		found = found || c.Check == alias && !c.Holds
	}
	if !found {
		t.Errorf("it is not found that copies share their pages: %+v", got)
	}
	if strings.Contains(s.all.String(), "Signature") || strings.Contains(s.all.String(), "sig=") {
		t.Error("a signature was written")
	}
}
