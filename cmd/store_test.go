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
	if err := json.Unmarshal([]byte(s.run(3, "store", "probe", "--json")), &got); err != nil {
		t.Fatal(err)
	}
	const alias = "a copy changes nothing of what it was made of" // the emulator's copies do
	if got.Error.Code != "store-unfit" || !strings.Contains(got.Error.Message, alias) || got.Store == "" || len(got.Checks) < 20 {
		t.Errorf("%+v", got)
	}
	for _, c := range got.Checks {
		if c.Needed && c.Holds == (c.Check == alias) {
			t.Errorf("%+v", c)
		}
	}
	for _, command := range []string{"check", "protect"} {
		if out := s.run(3, command, "web01", "--json"); !strings.Contains(out, alias) {
			t.Errorf("%s does not say why: %s", command, out)
		}
	}
	if strings.Contains(s.all.String(), "Signature") || strings.Contains(s.all.String(), "sig=") {
		t.Error("a signature was written")
	}
}
