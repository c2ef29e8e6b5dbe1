// Package rules holds no code: its test keeps who may import whom.
package rules
