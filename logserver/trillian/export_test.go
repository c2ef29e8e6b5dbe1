package trillian

// SetLeavesPerStep changes how many leaves are integrated at once.
func SetLeavesPerStep(n uint64) (restore func()) {
	was := leavesPerStep
	leavesPerStep = n
	return func() { leavesPerStep = was }
}
