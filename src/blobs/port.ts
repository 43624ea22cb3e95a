/**
 * Where bytes rest. A *blob* is a name and bytes, written once, never changed; a *store* keeps
 * blobs. Packs, savesets, mtrees and the vault's configuration are blobs.
 *
 * Invariants: a blob is there whole or not at all; once `put` has resolved, or failed with
 * `already-exists`, it survives a power cut, and so does all that an opened store shows; an existing
 * blob is never overwritten. Names are segments of [A-Za-z0-9._-] joined by `/`, no
 * segment begins with a dot (`checkBlobName`).
 *
 * Concurrency: every operation may run beside every other one, also on the same name: of two puts
 * of one name one wins and the other one fails with `already-exists`. A reader goes on reading a
 * blob that is removed meanwhile, or fails with `not-found`; it never sees other bytes.
 *
 * Errors: `not-found`, `already-exists`, `disk-full`, `io-error`, `bad-request` (a bad name).
 */
import { RouseError } from '../errors.ts';

export interface BlobStore {
  /** What this store is, for messages: a path or an address. */
  readonly place: string;
  /** Writes the chunks one after the other; durable and visible when it resolves. */
  put(name: string, chunks: readonly Uint8Array[]): Promise<void>;
  /** The whole blob; `not-found` when it is missing. For small blobs. */
  get(name: string): Promise<Buffer>;
  /** A reader to keep for many reads. `not-found` when the blob is missing. */
  open(name: string): Promise<BlobReader>;
  /** Every blob whose name begins with `prefix` (a folder with its `/`, or ''), unsorted. */
  list(prefix: string): Promise<BlobStat[]>;
  stat(name: string): Promise<BlobStat | undefined>;
  /** Durable when it resolves. Removing what is not there is no error. */
  remove(name: string): Promise<void>;
  space(): Promise<{ totalBytes: number; freeBytes: number } | undefined>;
}

export interface BlobStat {
  readonly name: string;
  readonly sizeBytes: number;
}

export interface BlobReader {
  readonly sizeBytes: number;
  /**
   * Fills `target` from `position` without ever waiting; false when some of the range is not in
   * memory or lies beyond the end (then `read` says which).
   */
  readNow(target: Uint8Array, position: number): boolean;
  /** Fills `target` from `position`; `corrupt-data` when the blob ends before. */
  read(target: Uint8Array, position: number): Promise<void>;
  close(): Promise<void>;
}

const segment = /^[A-Za-z0-9_-][A-Za-z0-9._-]*$/;

/** A name of 255 bytes a segment fits every file system; 1,024 in all fits S3 keys. */
const nameLengthMax = 1024;
const segmentLengthMax = 255;

export function checkBlobName(name: string): void {
  const good =
    name.length <= nameLengthMax &&
    name.split('/').every((part) => part.length <= segmentLengthMax && segment.test(part));
  if (!good) throw new RouseError('bad-request', `"${name}" is no name of a blob`);
}

export function missingBlob(place: string, name: string): RouseError {
  return new RouseError('not-found', `${place}: there is no ${name}`);
}

export function existingBlob(place: string, name: string): RouseError {
  return new RouseError('already-exists', `${place}: ${name} exists already`, {
    advice: 'Blobs are never overwritten; remove the old one first if it is unwanted.',
  });
}

export function shortBlob(name: string, position: number, length: number, size: number) {
  return new RouseError(
    'corrupt-data',
    `${name} ends after ${size} bytes; ${length} bytes at ${position} were expected`,
    { details: { blob: name, position, length, sizeBytes: size } },
  );
}
