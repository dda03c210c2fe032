package cmd_test

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// needProgram skips where a program is missing; in CI it fails.
func needProgram(t *testing.T, program, debianPackage string) {
	t.Helper()
	if _, err := exec.LookPath(program); err == nil {
		return
	}
	if os.Getenv("CI") == "true" {
		t.Fatalf("%s is missing: apt-get install %s", program, debianPackage)
	}
	t.Skipf("needs %s: apt-get install %s", program, debianPackage)
}

// TestCompletionInShells: the scripts complete in the shells that they are for, also after "--plan=" and in words with blanks, and evaluate
// nothing of what the site file says.
func TestCompletionInShells(t *testing.T) {
	dir := around(t, "hypervisor: none", "hypervisor: none", "")
	site := read(t, filepath.Join(dir, "site.yaml")) + "recovery_plans: [{name: shop, groups: [{vms: [web01], post: [{manual: \"$(touch evaluated) `touch evaluated`\"}]}]}]\n"
	write(t, filepath.Join(dir, "site.yaml"), []byte(site))
	must(t, dir, 0, "protect", "web01")
	must(t, dir, 12, "failover", "test", "--plan", "shop")
	for _, shell := range []struct{ name, try string }{
		// The words are split as the shell splits them: bash makes "=" a word of its own.
		{"bash", `source <(sitrep completion bash)
			try() { COMP_WORDS=(sitrep "$@"); COMP_CWORD=$#; _sitrep; for w in "${COMPREPLY[@]}"; do eval "echo $w"; done; }
			try failover test ''; try failover test --plan = sh; try failover test --plan =; try failover continue --plan shop --done ''`},
		{"zsh", `zmodload zsh/zpty; zpty z "zsh -f -i"; zpty -w z 'PS1=; source <(sitrep completion zsh)'
			try() { zpty -n -w z "$1"$'\t'; zpty -n -w z $'\C-aprint -r -- \C-e >>said; touch done-'$2$'\n'; until [[ -e done-$2 ]]; do zpty -r -t z; sleep 0.1; done; }
			try 'sitrep failover test ' 1; try 'sitrep failover test --plan=sh' 2; try 'sitrep failover continue --plan shop --done gr' 3`},
		{"fish", `sitrep completion fish | source
			complete -C'sitrep failover test '; complete -C'sitrep failover test --plan=sh'; complete -C'sitrep failover continue --plan shop --done '`},
	} {
		t.Run(shell.name, func(t *testing.T) {
			needProgram(t, shell.name, shell.name)
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			c := exec.CommandContext(ctx, shell.name, "-c", shell.try)
			c.Dir, c.Env = dir, append(os.Environ(), "HOME="+dir, "TERM=dumb")
			out, err := c.CombinedOutput()
			text := string(out)
			if shell.name == "zsh" {
				text = read(t, filepath.Join(dir, "said"))
			}
			if err != nil {
				t.Fatal(err, text)
			}
			for _, want := range []string{"web01", "shop", "group 1: post-step 1"} {
				if !strings.Contains(text, want) {
					t.Errorf("%q is not offered:\n%s", want, text)
				}
			}
			if exists(dir, "evaluated") {
				t.Error("a text of the site file was evaluated")
			}
		})
	}
}

// TestCompletionOnlyLooks: nothing is written by who presses Tab, whatever is asked for.
func TestCompletionOnlyLooks(t *testing.T) {
	dir := around(t, "hypervisor: none", "hypervisor: none", "")
	must(t, dir, 0, "protect", "web01")
	files := func() (out string) {
		err := filepath.Walk(dir, func(path string, info os.FileInfo, err error) error {
			if err == nil {
				out += fmt.Sprintln(path, info.Size(), info.Mode(), info.ModTime())
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	before := files()
	for _, words := range [][]string{{""}, {"points", "web01", "--export", ""}, {"failover", "unplanned", "web01", "--point", ""}, {"jobs", "show", ""},
		{"store", "remove", ""}, {"failover", "continue", "--done", ""}, {"--state", "elsewhere", "points", "web01", "--hold", ""}} {
		must(t, dir, 0, append([]string{"candidates", "--"}, words...)...)
	}
	if after := files(); after != before {
		t.Errorf("something was written:\n%s\nbefore:\n%s", after, before)
	}
}

// TestManualPage: mandoc has nothing to say against it.
func TestManualPage(t *testing.T) {
	needProgram(t, "mandoc", "mandoc")
	page := filepath.Join(t.TempDir(), "sitrep.8")
	write(t, page, []byte(run(t, t.TempDir(), "man")))
	if out, err := exec.Command("mandoc", "-Tlint", "-W", "warning", page).CombinedOutput(); err != nil || len(out) > 0 {
		t.Errorf("%v\n%s", err, out)
	}
}

func read(t *testing.T, name string) string {
	t.Helper()
	data, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}
