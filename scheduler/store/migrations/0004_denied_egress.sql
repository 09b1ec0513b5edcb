-- What a runner tried to reach and was not let, as JSON; NULL where the node could not tell.
ALTER TABLE runners ADD COLUMN denied TEXT;
