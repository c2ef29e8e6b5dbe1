-- The end of a witness. Once it is here, no head moves any more, whatever
-- program asks.

-- +goose Up
CREATE TABLE retirement (
	one    INTEGER PRIMARY KEY CHECK (one = 1),
	at     INTEGER NOT NULL CHECK (at > 0),
	reason TEXT    NOT NULL CHECK (reason <> '')
) STRICT;

-- +goose StatementBegin
CREATE TRIGGER retirement_fixed BEFORE UPDATE ON retirement
BEGIN
	SELECT raise(ABORT, 'a witness retires once');
END;
-- +goose StatementEnd

-- +goose StatementBegin
CREATE TRIGGER retirement_once BEFORE INSERT ON retirement
WHEN EXISTS (SELECT 1 FROM retirement)
BEGIN
	SELECT raise(ABORT, 'a witness retires once');
END;
-- +goose StatementEnd

-- +goose StatementBegin
CREATE TRIGGER retirement_never_gone BEFORE DELETE ON retirement
BEGIN
	SELECT raise(ABORT, 'a witness retires for ever');
END;
-- +goose StatementEnd

-- +goose StatementBegin
CREATE TRIGGER head_retired BEFORE UPDATE ON head
WHEN EXISTS (SELECT 1 FROM retirement)
BEGIN
	SELECT raise(ABORT, 'a retired witness signs nothing');
END;
-- +goose StatementEnd

-- +goose StatementBegin
CREATE TRIGGER head_retired_first BEFORE INSERT ON head
WHEN EXISTS (SELECT 1 FROM retirement)
BEGIN
	SELECT raise(ABORT, 'a retired witness signs nothing');
END;
-- +goose StatementEnd
