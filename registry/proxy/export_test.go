package proxy

import "time"

// Hurry shortens how long p waits for a file that does not come.
func (p *Proxy) Hurry(holdFor, stall time.Duration) { p.holdFor, p.stall = holdFor, stall }
