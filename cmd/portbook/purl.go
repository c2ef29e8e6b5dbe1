package main

// Package URLs (purl) on the command line: one word for ecosystem, project,
// version and registry.

import (
	"cmp"
	"fmt"
	"strings"

	"github.com/package-url/packageurl-go"
	"github.com/portbook/portbook/entry"
)

// A named package is what a package URL says.
type named struct {
	ecosystem, project, version string
	registry                    string // "" if neither the URL nor purl's own defaults name one
}

// purlRegistries are what a package URL without repository_url means.
var purlRegistries = map[string]string{entry.PyPI: "pypi.org", entry.NPM: "registry.npmjs.org"}

// readPURL reads pkg:pypi/six@1.17.0?repository_url=https://pypi.example.org. registry
// is what --registry says, or "".
func readPURL(s, registry string) (named, error) {
	p, err := packageurl.FromString(s)
	if err != nil {
		return named{}, fmt.Errorf("--purl %s: not a package URL such as pkg:pypi/six@1.17.0: %w", show(s), err)
	}
	n := named{ecosystem: p.Type, project: p.Name, version: p.Version, registry: registry}
	if err := checkEcosystem(n.ecosystem); err != nil {
		return named{}, fmt.Errorf("--purl %s: no ecosystem %s: want one of %s", show(s), show(p.Type), strings.Join(entry.Ecosystems(), ", "))
	}
	if p.Namespace != "" {
		n.project = p.Namespace + "/" + p.Name
	}
	if n.project, err = entry.NormalProject(n.ecosystem, n.project); err != nil {
		return named{}, fmt.Errorf("--purl %s: %w", show(s), err)
	}
	if p.Subpath != "" {
		return named{}, fmt.Errorf("--purl %s: names a path inside the package", show(s))
	}
	for key, value := range p.Qualifiers.Map() {
		if key != "repository_url" {
			return named{}, fmt.Errorf("--purl %s: qualifier %s is not understood; only repository_url is", show(s), show(key))
		}
		if !strings.Contains(value, "://") {
			value = "https://" + value
		}
		at, err := registryName(value)
		if err != nil {
			return named{}, fmt.Errorf("--purl %s: repository_url: %w", show(s), err)
		}
		if registry != "" && registry != at {
			return named{}, fmt.Errorf("--purl names the registry %s, --registry %s", at, registry)
		}
		n.registry = at
	}
	n.registry = cmp.Or(n.registry, purlRegistries[n.ecosystem])
	return n, nil
}
