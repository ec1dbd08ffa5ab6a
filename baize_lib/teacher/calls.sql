-- One row a call. state: begun, answered, or doubtful (it may have been billed, unseen).
-- pico: picodollars; the bill is what is owed: the price of an answer, the bound of all others.
-- batch: the tag of the batch a call was sent with; '' for one that waits for the next batch, its
-- request in `text`; NULL for one that is made by itself.
CREATE TABLE IF NOT EXISTS calls (
  id INTEGER PRIMARY KEY, key TEXT NOT NULL, purpose TEXT NOT NULL, subject TEXT NOT NULL,
  part TEXT NOT NULL, model TEXT NOT NULL, state TEXT NOT NULL, batch TEXT,
  bound_pico INTEGER NOT NULL, bound_tokens INTEGER NOT NULL,
  pico INTEGER, input INTEGER, cached_input INTEGER, output INTEGER, estimated INTEGER,
  finish_reason TEXT, text TEXT);
CREATE INDEX IF NOT EXISTS keys ON calls (key);
CREATE INDEX IF NOT EXISTS subjects ON calls (purpose, subject);

CREATE TABLE IF NOT EXISTS settings (purpose TEXT PRIMARY KEY, value TEXT NOT NULL);

-- step: uploaded (the file of requests lies at the provider) or submitted (as the batch `name`).
CREATE TABLE IF NOT EXISTS batches (tag TEXT PRIMARY KEY, step TEXT NOT NULL, file TEXT, name TEXT);

CREATE VIEW IF NOT EXISTS bill AS SELECT *,
  CASE state WHEN 'answered' THEN pico ELSE bound_pico END AS owed,
  CASE state WHEN 'answered' THEN input + output ELSE bound_tokens END AS tokens FROM calls;

CREATE VIEW IF NOT EXISTS spent AS SELECT
  coalesce(sum(owed), 0) AS pico,
  coalesce(sum(owed) FILTER (WHERE state = 'doubtful'), 0) AS doubtful_pico,
  coalesce(sum(tokens), 0) AS tokens
FROM bill WHERE state != 'begun';

PRAGMA user_version = 2;
