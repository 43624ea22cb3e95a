/**
 * The little of a file system that the vault's directory store, its index and the write layer of
 * clones stand on. One real implementation (node-files.ts); the power-cut simulator replaces it by
 * one that forgets what was not synced (testing/forgetful-files.ts).
 *
 * Contract: `write`/`writeNow` hand the bytes to the operating system (they survive the death of
 * this process, not a power cut). `sync` returns once everything written to that file before the
 * call, its size included, is durable. A new, renamed or removed name is durable once
 * `syncDirectory` of its directory has returned. Errors are RouseError: `disk-full`, `not-found`,
 * `already-exists`, `io-error`.
 */
export interface Files {
  open(path: string, mode: OpenMode): Promise<OpenFile>;
  rename(from: string, to: string): Promise<void>;
  remove(path: string): Promise<void>;
  /** Creates the directory and its parents; no error when it exists. */
  makeDirectory(path: string): Promise<void>;
  /** Removes an empty directory. */
  removeDirectory(path: string): Promise<void>;
  /** Names in the directory, unsorted; [] when it does not exist. */
  list(path: string): Promise<string[]>;
  stat(path: string): Promise<FileStat | undefined>;
  syncDirectory(path: string): Promise<void>;
  space(path: string): Promise<{ totalBytes: number; freeBytes: number }>;
}

/**
 * `read`: must exist. `write`: read and write, created when missing. `create`: read and write,
 * fails with `already-exists` when it is there.
 */
export type OpenMode = 'read' | 'write' | 'create';

export interface FileStat {
  readonly sizeBytes: number;
  readonly allocatedBytes: number;
  readonly isDirectory: boolean;
  readonly modifiedMs: number;
}

export interface OpenFile {
  /** Bytes read; fewer than `target.length` only at the end of the file. */
  read(target: Uint8Array, position: number): Promise<number>;
  /**
   * The same without ever waiting for the disk: bytes read, or -1 when some of the range is not in
   * memory (then call `read`).
   */
  readNow(target: Uint8Array, position: number): number;
  /** Writes all buffers, one after the other, from `position`. */
  write(buffers: readonly Uint8Array[], position: number): Promise<void>;
  /**
   * As `write`, for much that nobody reads soon: where the file system can, it goes past the page
   * cache, which stays with those who read. Bytes in buffers of `alignedBuffer` can; others, and
   * what is left behind the last whole page, are written as usual. Nothing else may be written to
   * the file meanwhile.
   */
  writeUncached(buffers: readonly Uint8Array[], position: number): Promise<void>;
  /** As `write`, synchronously, into the page cache. */
  writeNow(buffers: readonly Uint8Array[], position: number): void;
  sync(): Promise<void>;
  /** Gives the range back; it reads as zeros afterwards. The size stays. */
  punch(position: number, length: number): Promise<void>;
  truncate(sizeBytes: number): Promise<void>;
  size(): Promise<number>;
  close(): Promise<void>;
}
