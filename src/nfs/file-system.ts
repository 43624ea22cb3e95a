import type { MaybePromise } from '../lib/maybe-promise.ts';

/**
 * What an NFS export shows, as the protocol needs it. The NFS room defines this port and knows
 * nothing of clones; `datastore/` implements it. Files are named by a `FileId`, stable for the life
 * of the export, over restarts too. Names are UTF-8 without `/` and NUL, 1 to 255 bytes.
 *
 * Every method may answer at once or with a promise; hot paths (read, write, attributes) answer at
 * once whenever no disk has to be waited for. Failures are thrown or rejected as `NfsError`.
 */
export interface FileSystem {
  readonly root: FileId;
  /** Differs for every export; constant for its life (fattr3.fsid). */
  readonly fsid: bigint;
  /** Generation of the file; a handle with another one is stale. undefined: no such file. */
  generation(file: FileId): number | undefined;

  attributes(file: FileId): MaybePromise<Attributes>;
  /** `guardCtime`: fail with NOT_SYNC when the file's ctime differs (RFC 1813 3.3.2). */
  setAttributes(
    file: FileId,
    change: AttributeChange,
    guardCtime?: NfsTime,
  ): MaybePromise<Attributes>;
  lookup(directory: FileId, name: string): MaybePromise<FileId>;
  /** ACCESS3 bits (RFC 1813 3.3.4) granted to `caller` among `wanted`. */
  access(file: FileId, wanted: number, caller: Caller): MaybePromise<number>;
  readLink(file: FileId): MaybePromise<string>;
  /**
   * Reads into `target` from `offset`. `bytes` is less than `target.length` only at the end of the
   * file; `eof` says whether the read reached it.
   */
  read(file: FileId, offset: number, target: Buffer): MaybePromise<ReadResult>;
  /**
   * Writes `data`, whose memory belongs to the caller again as soon as this answers. `stable` as in
   * RFC 1813 3.3.7: the answer comes only when the bytes are as safe as asked.
   */
  write(file: FileId, offset: number, data: Buffer, stable: Stable): MaybePromise<WriteResult>;
  /** Makes all earlier writes of the range (0, 0: the file) durable. */
  commit(file: FileId, offset: number, length: number): MaybePromise<WriteResult>;
  create(directory: FileId, name: string, how: CreateHow): MaybePromise<FileId>;
  makeDirectory(directory: FileId, name: string, change: AttributeChange): MaybePromise<FileId>;
  makeSymlink(
    directory: FileId,
    name: string,
    target: string,
    change: AttributeChange,
  ): MaybePromise<FileId>;
  remove(directory: FileId, name: string): MaybePromise<void>;
  removeDirectory(directory: FileId, name: string): MaybePromise<void>;
  rename(from: FileId, fromName: string, to: FileId, toName: string): MaybePromise<void>;
  link(file: FileId, directory: FileId, name: string): MaybePromise<void>;
  /**
   * Entries after `cookie` (0: from the start, `.` and `..` included), at most `limit`. Cookies stay
   * valid while the directory changes: an entry present all the time is listed exactly once.
   */
  readDirectory(directory: FileId, cookie: bigint, limit: number): MaybePromise<DirectoryPage>;
  /** The parent of a directory (of the root: the root). */
  parent(directory: FileId): MaybePromise<FileId>;
  /** Honest figures of where the writes go (FSSTAT). */
  space(): MaybePromise<Space>;
  /** The write verifier (8 bytes): changes if and only if unsynced data was lost. */
  readonly writeVerifier: bigint;
}

/** A whole number from 1 to 2^53 - 1. */
export type FileId = number;

/** stable_how of RFC 1813 3.3.7. */
export const Stable = { unstable: 0, dataSync: 1, fileSync: 2 } as const;
export type Stable = (typeof Stable)[keyof typeof Stable];

export interface NfsTime {
  readonly seconds: number;
  readonly nanoseconds: number;
}

export interface Attributes {
  readonly kind: 'file' | 'directory' | 'symlink';
  /** Permission bits only. */
  readonly mode: number;
  readonly links: number;
  readonly uid: number;
  readonly gid: number;
  readonly sizeBytes: number;
  readonly usedBytes: number;
  readonly fileId: FileId;
  readonly accessed: NfsTime;
  readonly modified: NfsTime;
  readonly changed: NfsTime;
}

/** Only the named members change. Times: `server` means the server's clock. */
export interface AttributeChange {
  readonly mode?: number;
  readonly uid?: number;
  readonly gid?: number;
  readonly sizeBytes?: number;
  readonly accessed?: NfsTime | 'server';
  readonly modified?: NfsTime | 'server';
}

/** `exclusive`: succeeds again for the same 8-byte verifier (RFC 1813 3.3.8). */
export type CreateHow =
  | { readonly mode: 'unchecked' | 'guarded'; readonly change: AttributeChange }
  | { readonly mode: 'exclusive'; readonly verifier: bigint };

export interface Caller {
  readonly uid: number;
  readonly gid: number;
  readonly groups: readonly number[];
}

export interface ReadResult {
  readonly bytes: number;
  readonly eof: boolean;
}

export interface WriteResult {
  /** How safe the bytes are now; at least as asked. */
  readonly committed: Stable;
}

export interface DirectoryEntry {
  readonly fileId: FileId;
  readonly name: string;
  /** Where to go on after this entry; never 0. */
  readonly cookie: bigint;
}

export interface DirectoryPage {
  readonly entries: readonly DirectoryEntry[];
  readonly eof: boolean;
}

export interface Space {
  readonly totalBytes: number;
  readonly freeBytes: number;
  readonly totalFiles: number;
  readonly freeFiles: number;
}

/** nfsstat3 (RFC 1813 2.6). */
export const NfsStatus = {
  ok: 0,
  perm: 1,
  noent: 2,
  io: 5,
  nxio: 6,
  acces: 13,
  exist: 17,
  xdev: 18,
  nodev: 19,
  notdir: 20,
  isdir: 21,
  inval: 22,
  fbig: 27,
  nospc: 28,
  rofs: 30,
  mlink: 31,
  nametoolong: 63,
  notempty: 66,
  dquot: 69,
  stale: 70,
  remote: 71,
  badhandle: 10001,
  notSync: 10002,
  badCookie: 10003,
  notsupp: 10004,
  toosmall: 10005,
  serverfault: 10006,
  badtype: 10007,
  jukebox: 10008,
} as const;
export type NfsStatus = (typeof NfsStatus)[keyof typeof NfsStatus];

export class NfsError extends Error {
  readonly status: NfsStatus;
  constructor(status: NfsStatus, message = `nfsstat3 ${status}`) {
    super(message);
    this.name = 'NfsError';
    this.status = status;
  }
}
