-- +goose Up

-- What the subscriptions made of an entry when it was read, for the page:
-- 'unexpected', 'tampering', or '' where nobody's expectation was against it.
ALTER TABLE entry ADD COLUMN verdict TEXT NOT NULL DEFAULT '';

CREATE INDEX alert_entry ON alert (log, idx) WHERE idx IS NOT NULL;

-- Entries read before this column. An alert may be about an entry of a history
-- that the operator has forgotten since; then the leaf it carries is another.
UPDATE entry SET verdict = 'unexpected' WHERE (log, idx) IN (SELECT log, idx FROM alert WHERE severity = 1 AND idx IS NOT NULL)
    AND EXISTS (SELECT 1 FROM alert a WHERE a.severity = 1 AND a.log = entry.log AND a.idx = entry.idx AND instr(a.body, CAST(leaf AS TEXT)) > 0
        AND a.body NOT LIKE '%"why":"The subscription names no expected publisher%');
UPDATE entry SET verdict = 'tampering' WHERE (log, idx) IN (SELECT log, idx FROM alert WHERE severity = 0 AND idx IS NOT NULL)
    AND EXISTS (SELECT 1 FROM alert a WHERE a.severity = 0 AND a.log = entry.log AND a.idx = entry.idx AND instr(a.body, CAST(leaf AS TEXT)) > 0);

CREATE INDEX delivery_state ON delivery (state);

-- +goose Down
DROP INDEX delivery_state; DROP INDEX alert_entry;
ALTER TABLE entry DROP COLUMN verdict;
