-- The end of a witness. Once it is here, no head moves any more, whatever
-- program asks. Writers of heads and who ends the witness lock generation first.

-- +goose Up
CREATE TABLE retirement (
	one    int    PRIMARY KEY CHECK (one = 1),
	at     bigint NOT NULL CHECK (at > 0),
	reason text   NOT NULL CHECK (reason <> '')
);
CREATE TRIGGER retirement_fixed BEFORE UPDATE OR DELETE OR TRUNCATE ON retirement EXECUTE FUNCTION never_gone();

-- +goose StatementBegin
CREATE FUNCTION head_retired() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
	IF EXISTS (SELECT FROM retirement) THEN
		RAISE EXCEPTION 'a retired witness signs nothing';
	END IF;
	RETURN new;
END $$;
-- +goose StatementEnd
CREATE TRIGGER head_retired BEFORE INSERT OR UPDATE ON head FOR EACH ROW EXECUTE FUNCTION head_retired();
