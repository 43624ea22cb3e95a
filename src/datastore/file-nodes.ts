/** What the file table of a clone knows of one file, directory, link or disk. */
import type { Attributes, FileId, NfsTime } from '../nfs/file-system.ts';

export type NodeKind = 'file' | 'directory' | 'symlink' | 'disk';

/** As written to the table's journal. */
export interface NodeRecord {
  readonly id: FileId;
  readonly kind: NodeKind;
  mode: number;
  uid: number;
  gid: number;
  links: number;
  accessed: NfsTime;
  modified: NfsTime;
  changed: NfsTime;
  /** Of a directory: where `..` leads. */
  parent?: FileId;
  /** Of a symlink. */
  target?: string;
  /** Of a disk: its number in the clone. */
  disk?: number;
  /** Of a file made by an exclusive CREATE: decimal (RFC 1813 3.3.8). */
  verifier?: string;
}

export interface DirectoryEntryRecord {
  readonly name: string;
  readonly id: FileId;
  /** Ascending in the order of making; never used twice in one directory. */
  readonly cookie: number;
}

export interface ShownAttributes {
  readonly record: NodeRecord;
  readonly written: NfsTime | undefined;
  readonly attributes: Attributes;
}

export class FileNode {
  record: NodeRecord;
  /** Of a directory. */
  readonly entries = new Map<string, DirectoryEntryRecord>();
  /** Cookies 1 and 2 are `.` and `..`. */
  nextCookie = 3;
  /** Of a plain file, once known. */
  sizeBytes: number | undefined;
  allocatedBytes = 0;
  /** Of a disk: the attributes shown last, and what they were made of. */
  shown: ShownAttributes | undefined;
  #listing: DirectoryEntryRecord[] | undefined;

  constructor(record: NodeRecord) {
    this.record = record;
  }

  link(entry: DirectoryEntryRecord): void {
    this.entries.delete(entry.name);
    this.entries.set(entry.name, entry);
    this.nextCookie = Math.max(this.nextCookie, entry.cookie + 1);
    this.#listing = undefined;
  }

  unlink(name: string): void {
    this.entries.delete(name);
    this.#listing = undefined;
  }

  /** Entries whose cookie is greater, ascending. */
  after(cookie: number, limit: number): readonly DirectoryEntryRecord[] {
    this.#listing ??= [...this.entries.values()].sort((a, b) => a.cookie - b.cookie);
    let low = 0;
    let high = this.#listing.length;
    while (low < high) {
      const middle = (low + high) >>> 1;
      if ((this.#listing[middle]?.cookie ?? 0) > cookie) high = middle;
      else low = middle + 1;
    }
    return this.#listing.slice(low, low + limit);
  }
}
