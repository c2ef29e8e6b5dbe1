package gateway

// CrashForTest sets the hook that is called at each point where a process may die.
func (g *Gateway) CrashForTest(hook func(point string)) { g.crashForTest = hook }
