// Who uploaded to a project: what a maintainer looks at first. A publisher that
// was not there before is marked, whether anybody subscribed or not.

package web

import (
	"slices"

	"github.com/portbook/portbook/entry"
	"github.com/portbook/portbook/monitor"
	"github.com/portbook/portbook/monitor/alert"
)

// timelineRow is one entry of a project. New: its uploader had not uploaded to
// the project before, and somebody else had.
type timelineRow struct {
	monitor.Record
	New bool
}

// publisherRow is who uploaded, and how often, in the records read.
type publisherRow struct {
	Name       string
	Uploads    int
	Share      int    // percent
	New        bool   // others had uploaded before
	First      string // time of its first upload
	Unexpected int    // uploads a subscription did not expect, or worse
}

// uploader is what tells two publishers apart: all that the index says of them.
// A repository whose name changed hands is another one by its id.
type uploader struct {
	publisher entry.Publisher
	auth      string
}

// compare marks the uploads, newest first, whose uploader is new in them, and
// lists the uploaders. The oldest one is never new: what came before is not
// known.
func compare(records []monitor.Record) ([]timelineRow, []publisherRow) {
	rows := make([]timelineRow, len(records))
	var who []uploader
	var list []publisherRow
	total := 0
	for i, r := range slices.Backward(records) {
		rows[i].Record = r
		if r.Entry == nil || r.Entry.Kind != entry.KindUpload {
			continue
		}
		u := uploader{auth: r.Entry.Auth}
		if r.Entry.Publisher != nil {
			u.publisher = *r.Entry.Publisher
		}
		k := slices.Index(who, u)
		if k < 0 {
			k = len(who)
			who = append(who, u)
			rows[i].New = k > 0
			list = append(list, publisherRow{Name: publisherName(r.Entry), New: k > 0, First: r.Entry.Time})
		}
		total++
		list[k].Uploads++
		if r.Verdict == alert.Unexpected || r.Verdict == alert.Tampering {
			list[k].Unexpected++
		}
	}
	uses := map[string]int{}
	for i := range list {
		uses[list[i].Name]++
	}
	for i := range list {
		list[i].Share = list[i].Uploads * 100 / total
		if id := who[i].publisher.RepositoryID; id != "" && uses[list[i].Name] > 1 {
			list[i].Name += " · repository id " + id
		}
	}
	slices.Reverse(list) // newest first, as the timeline
	return rows, list
}
