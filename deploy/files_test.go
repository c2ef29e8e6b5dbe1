package deploy_test

// This file: what can be said of the examples without starting anything. Every
// key and flag exists, and the tools whose formats these are find no fault.

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"gopkg.in/yaml.v3"
)

// flagsOf returns the flags that a command's help lists. words is a command
// line: the program, its command, and whatever follows.
func flagsOf(t *testing.T, words []string) map[string]bool {
	t.Helper()
	var command []string
	for _, w := range words {
		if strings.HasPrefix(w, "-") {
			break
		}
		command = append(command, w)
	}
	if !slices.Contains(programs, command[0]) {
		t.Fatalf("%q is none of our programs", command[0])
	}
	out, err := exec.Command(filepath.Join(binaries(t), command[0]), append(command[1:], "--help")...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s --help: %v\n%s", strings.Join(command, " "), err, out)
	}
	flags := map[string]bool{}
	for _, m := range regexp.MustCompile(`(?m)^ +(?:-[a-z], |    )--([a-z0-9-]+)\b`).FindAllStringSubmatch(string(out), -1) {
		flags[m[1]] = true
	}
	if len(flags) == 0 {
		t.Fatalf("%s --help lists no flags:\n%s", strings.Join(command, " "), out)
	}
	return flags
}

// checkCommand reports flags in words that the command does not have.
func checkCommand(t *testing.T, where string, words []string) {
	t.Helper()
	flags := flagsOf(t, words)
	for _, w := range words {
		if w == "--" {
			return // what follows is another program's
		}
		name, isFlag := strings.CutPrefix(w, "--")
		name, _, _ = strings.Cut(name, "=")
		if isFlag && !flags[name] {
			t.Errorf("%s: %s has no flag --%s", where, strings.Join(words, " "), name)
		}
	}
}

func read(t *testing.T, path string) string {
	t.Helper()
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(raw)
}

// TestConfigKeys: each example configuration says in its first line what it is
// for; its keys, also those behind "#", are flags of that command.
func TestConfigKeys(t *testing.T) {
	for _, name := range []string{"log", "witness", "auditor", "monitor", "gateway", "proxy"} {
		text := read(t, "config/"+name+".yaml")
		first, _, _ := strings.Cut(text, "\n")
		words := strings.Fields(strings.TrimPrefix(first, "# "))
		checkCommand(t, name, words)
		flags := flagsOf(t, words)
		var keys map[string]any
		if err := yaml.Unmarshal([]byte(text), &keys); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if len(keys) < 2 {
			t.Errorf("%s: only %d keys", name, len(keys))
		}
		for _, m := range regexp.MustCompile(`(?m)^#([a-z-]+):`).FindAllStringSubmatch(text, -1) {
			keys[m[1]] = nil
		}
		for key := range keys {
			if !flags[key] {
				t.Errorf("%s: %q is no flag of %s", name, key, strings.Join(words[:2], " "))
			}
		}
	}
}

// TestSubscriptionsExample: what is behind "#" is a file that can be used.
func TestSubscriptionsExample(t *testing.T) {
	text := read(t, "config/subscriptions.yaml")
	example := filepath.Join(t.TempDir(), "subscriptions.yaml")
	var lines []string
	for line := range strings.Lines(text) {
		if rest, ok := strings.CutPrefix(line, "#"); ok && !strings.HasPrefix(rest, " Who") && !strings.HasPrefix(rest, " `") && !strings.HasPrefix(rest, " Nobody") {
			lines = append(lines, rest)
		}
	}
	if err := os.WriteFile(example, []byte(strings.Join(lines, "")), 0o600); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]string{
		"config/subscriptions.yaml": "0 subscriptions, 0 projects, 0 mail addresses, 0 webhooks: ok",
		example:                     "1 subscriptions, 1 projects, 2 mail addresses, 1 webhooks: ok",
	} {
		out, err := exec.Command(filepath.Join(binaries(t), "portbook-monitor"), "subscriptions", "check", path).CombinedOutput()
		if err != nil || !strings.Contains(string(out), want) {
			t.Errorf("%s: %v\n%swant %s", path, err, out, want)
		}
	}
}

// TestDocsCommands: every command line of ours in docs/running.md has flags that exist.
func TestDocsCommands(t *testing.T) {
	text := strings.ReplaceAll(read(t, "../docs/running.md"), "\\\n", " ")
	found, inCode := 0, false
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		if strings.HasPrefix(line, "```") {
			inCode = !inCode
			continue
		}
		if !inCode {
			continue
		}
		line, _, _ = strings.Cut(line, " #")
		words := strings.Fields(line)
		if len(words) > 3 && words[0] == "sudo" && words[1] == "-u" {
			words = words[3:]
		}
		if len(words) > 0 && slices.Contains(programs, words[0]) {
			found++
			checkCommand(t, "docs/running.md", words)
		}
	}
	if found < 8 {
		t.Errorf("only %d commands found in docs/running.md", found)
	}

	// Its example of a policy is one.
	block := regexp.MustCompile("(?s)```\n(log .*?)```").FindStringSubmatch(text)
	if block == nil {
		t.Fatal("docs/running.md has no policy")
	}
	policy := filepath.Join(t.TempDir(), "policy")
	if err := os.WriteFile(policy, []byte(block[1]), 0o644); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command(filepath.Join(binaries(t), "portbook"), "policy", "check", policy).CombinedOutput(); err != nil {
		t.Errorf("the policy in docs/running.md: %v\n%s", err, out)
	}
}

// units returns the systemd units, with the user's own last.
func units(t *testing.T) []string {
	t.Helper()
	list, err := filepath.Glob("systemd/*.service")
	if err != nil || len(list) != 5 {
		t.Fatalf("%d system units, want 5: %v", len(list), err)
	}
	return append(list, "systemd/user/portbook-proxy.service")
}

// TestUnitCommands: each unit starts a command that exists, with the example
// configuration for that command.
func TestUnitCommands(t *testing.T) {
	for _, path := range units(t) {
		m := regexp.MustCompile(`(?m)^ExecStart=/usr/local/bin/(.*)$`).FindAllStringSubmatch(read(t, path), -1)
		if len(m) != 1 {
			t.Fatalf("%s: %d lines ExecStart=/usr/local/bin/…, want 1", path, len(m))
		}
		words := strings.Fields(m[0][1])
		checkCommand(t, path, words)
		config := strings.TrimSuffix(strings.TrimSuffix(filepath.Base(words[len(words)-1]), ".yaml"), "-%i")
		text := read(t, "config/"+config+".yaml")
		if want := "# " + strings.Join(words[:len(words)-1], " "); !strings.HasPrefix(text, want) {
			t.Errorf("%s runs %q; config/%s.yaml is not for that", path, words, config)
		}
		// What the configuration has it write, the unit lets it write.
		if dir := regexp.MustCompile(`(?m)^(?:dir|db): /var/lib/([a-z-]+)`).FindStringSubmatch(text); dir != nil &&
			!strings.Contains(read(t, path), "\nStateDirectory="+dir[1]) {
			t.Errorf("%s: no StateDirectory for /var/lib/%s of config/%s.yaml", path, dir[1], config)
		}
	}
}

// needs skips the test where a tool is not installed.
func needs(t *testing.T, tool string) {
	t.Helper()
	if _, err := exec.LookPath(tool); err != nil {
		t.Skip("needs " + tool)
	}
}

// analyze runs systemd-analyze without asking a running systemd.
func analyze(t *testing.T, args ...string) (string, error) {
	t.Helper()
	cmd := exec.Command("systemd-analyze", args...)
	cmd.Env = append(os.Environ(), "XDG_RUNTIME_DIR="+t.TempDir(), "SYSTEMD_PAGER=", "SYSTEMD_COLORS=0")
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// localUnits copies the units to a directory, with the programs as built here.
func localUnits(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for _, path := range units(t) {
		text := strings.ReplaceAll(read(t, path), "/usr/local/bin/", binaries(t)+"/")
		if err := os.WriteFile(filepath.Join(dir, filepath.Base(path)), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func TestUnitsVerify(t *testing.T) {
	needs(t, "systemd-analyze")
	dir := localUnits(t)
	for _, path := range units(t) {
		name := strings.Replace(filepath.Base(path), "@.", "@one.", 1)
		args := []string{"--man=no", "verify", filepath.Join(dir, name)}
		if strings.Contains(path, "/user/") {
			args = append([]string{"--user"}, args...)
		}
		if out, err := analyze(t, args...); err != nil || strings.TrimSpace(out) != "" {
			t.Errorf("%s: %v\n%s", name, err, out)
		}
	}
	// Its silence means something: a misspelt line is told.
	bad := filepath.Join(dir, "bad.service")
	text := strings.Replace(read(t, filepath.Join(dir, "portbook-log.service")), "ProtectSystem=", "ProtectSytem=", 1)
	if err := os.WriteFile(bad, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	if out, _ := analyze(t, "--man=no", "verify", bad); !strings.Contains(out, "ProtectSytem") {
		t.Errorf("a misspelt line was not noticed: %q", out)
	}
}

// TestUnitsHardened: systemd's own measure of what a service could do to the
// machine, 0 (nothing) to 10.
func TestUnitsHardened(t *testing.T) {
	needs(t, "systemd-analyze")
	dir := localUnits(t)
	for _, path := range units(t) {
		if strings.Contains(path, "/user/") {
			continue // its measure takes a service of root's for granted
		}
		out, err := analyze(t, "security", "--offline=true", "--threshold=20", filepath.Join(dir, filepath.Base(path)))
		if strings.Contains(out, "nrecognized option") {
			t.Skip("needs a systemd-analyze that can judge units offline (250)")
		}
		if err != nil {
			t.Errorf("%s is exposed by more than 2.0: %v\n%s", path, err, out)
		}
	}
}

// TestUsers: the users of the units are the ones that sysusers makes, and
// tmpfiles gives each its directory.
func TestUsers(t *testing.T) {
	made, dirs := read(t, "systemd/portbook.sysusers"), read(t, "systemd/portbook.tmpfiles")
	for _, path := range units(t)[:5] {
		m := regexp.MustCompile(`(?m)^User=(.*)$`).FindStringSubmatch(read(t, path))
		if m == nil || !strings.Contains(made, "\nu "+m[1]+" ") {
			t.Errorf("%s: its user %q is not in portbook.sysusers", path, m)
			continue
		}
		if !regexp.MustCompile(`(?m)^d /var/lib/` + m[1] + ` +07[05]0 +` + m[1] + ` +` + m[1] + `$`).MatchString(dirs) {
			t.Errorf("portbook.tmpfiles: no directory of %s", m[1])
		}
	}
	needs(t, "systemd-sysusers")
	file, err := filepath.Abs("systemd/portbook.sysusers") // a relative one is looked for in /etc
	if err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("systemd-sysusers", "--dry-run", file).CombinedOutput()
	if err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}

func TestShellcheck(t *testing.T) {
	needs(t, "shellcheck")
	if out, err := exec.Command("shellcheck", "setup.sh").CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}

func TestComposeConfig(t *testing.T) {
	if exec.Command("docker", "compose", "version").Run() != nil {
		t.Skip("needs docker compose")
	}
	if out, err := exec.Command("docker", "compose", "--profile", "setup", "-f", "compose.yaml", "config", "--quiet").CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}
