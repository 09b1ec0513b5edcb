-- What a finished runner read, wrote and held of GPU memory. NULL: the host could not tell.

ALTER TABLE runners ADD COLUMN read_bytes INTEGER;
ALTER TABLE runners ADD COLUMN written_bytes INTEGER;
ALTER TABLE runners ADD COLUMN gpu_memory INTEGER;
