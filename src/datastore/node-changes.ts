/** How records of files change, and what the protocol shows of them. */
import {
  NfsError,
  NfsStatus,
  type AttributeChange,
  type Attributes,
  type NfsTime,
} from '../nfs/file-system.ts';
import { toNfsError } from './export-names.ts';
import type { FileNode, NodeRecord } from './file-nodes.ts';
import type { TableChange } from './file-table.ts';

export function rethrow(error: unknown): never {
  throw toNfsError(error);
}

export function common(record: NodeRecord) {
  const { mode, links, uid, gid, id: fileId, accessed, modified, changed: ctime } = record;
  return { mode, links, uid, gid, fileId, accessed, modified, changed: ctime };
}

export function laterTimes(record: NodeRecord, written: NfsTime): Partial<Attributes> {
  return {
    modified: isAfter(written, record.changed) ? written : record.modified,
    changed: isAfter(written, record.changed) ? written : record.changed,
  };
}

export function sizeOf(node: FileNode): number {
  if (node.record.target !== undefined) return Buffer.byteLength(node.record.target);
  // What a directory of ext4 shows: whole blocks.
  if (node.record.kind === 'directory') return 4096 * Math.ceil((node.entries.size + 2) / 64);
  return node.sizeBytes ?? 0;
}

export function changed(record: NodeRecord, change: AttributeChange, now: NfsTime): NodeRecord {
  const next = { ...record, changed: now };
  if (change.mode !== undefined) next.mode = change.mode & 0o7777;
  if (change.uid !== undefined) next.uid = change.uid;
  if (change.gid !== undefined) next.gid = change.gid;
  if (change.accessed !== undefined)
    next.accessed = change.accessed === 'server' ? now : change.accessed;
  if (change.modified !== undefined)
    next.modified = change.modified === 'server' ? now : change.modified;
  return next;
}

/** A directory whose entries changed; `links`: sub-directories that came or went. */
export function touched(directory: FileNode, now: NfsTime, links = 0): TableChange {
  const { record } = directory;
  return { put: { ...record, links: record.links + links, modified: now, changed: now } };
}

export function checkReplace(node: FileNode, replaced: FileNode): void {
  const directory = node.record.kind === 'directory';
  const overDirectory = replaced.record.kind === 'directory';
  if (directory && !overDirectory) throw new NfsError(NfsStatus.notdir, 'not a directory');
  if (!directory && overDirectory) throw new NfsError(NfsStatus.isdir, 'is a directory');
  if (overDirectory && replaced.entries.size > 0) {
    throw new NfsError(NfsStatus.notempty, 'not empty');
  }
}

export function sameTime(a: NfsTime, b: NfsTime): boolean {
  return a.seconds === b.seconds && a.nanoseconds === b.nanoseconds;
}

export function isAfter(a: NfsTime, b: NfsTime): boolean {
  return a.seconds > b.seconds || (a.seconds === b.seconds && a.nanoseconds > b.nanoseconds);
}
