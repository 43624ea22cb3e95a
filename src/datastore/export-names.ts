/** Names, permissions and errors of an export's files, as RFC 1813 wants them. */
import { isRouseError, toRouseError } from '../errors.ts';
import { NfsError, NfsStatus, type Caller } from '../nfs/file-system.ts';
import type { NodeRecord } from './file-nodes.ts';

const nameBytesMax = 255;

/** A name that may be made, renamed to or removed. */
export function checkName(name: string): void {
  if (name === '' || name.includes('/') || name.includes('\0')) {
    throw new NfsError(NfsStatus.inval, 'not a file name');
  }
  checkLength(name);
}

export function checkLength(name: string): void {
  if (Buffer.byteLength(name) > nameBytesMax) {
    throw new NfsError(NfsStatus.nametoolong, `${name.slice(0, 40)}...: name too long`);
  }
}

export function isDots(name: string): boolean {
  return name === '.' || name === '..';
}

/** ACCESS3_* of RFC 1813 3.3.4. */
const access = { read: 1, lookup: 2, modify: 4, extend: 8, delete: 16, execute: 32 } as const;

/** Nobody is squashed: uid 0 may do everything but execute what is executable for nobody. */
export function accessOf(node: NodeRecord, wanted: number, caller: Caller): number {
  const directory = node.kind === 'directory';
  let bits = 0;
  if (caller.uid === 0) bits = directory || (node.mode & 0o111) !== 0 ? 7 : 6;
  else if (caller.uid === node.uid) bits = node.mode >> 6;
  else if (caller.gid === node.gid || caller.groups.includes(node.gid)) bits = node.mode >> 3;
  else bits = node.mode;
  let granted = 0;
  if ((bits & 4) !== 0) granted |= access.read;
  if ((bits & 2) !== 0) granted |= access.modify | access.extend;
  if ((bits & 2) !== 0 && directory) granted |= access.delete;
  if ((bits & 1) !== 0) granted |= directory ? access.lookup : access.execute;
  return granted & wanted;
}

/** What the protocol says for an error of ours. */
export function toNfsError(error: unknown): NfsError {
  if (error instanceof NfsError) return error;
  const { message } = toRouseError(error, 'export');
  if (isRouseError(error, 'disk-full')) return new NfsError(NfsStatus.nospc, message);
  if (isRouseError(error, 'quota-exceeded')) return new NfsError(NfsStatus.dquot, message);
  if (isRouseError(error, 'wrong-state')) return new NfsError(NfsStatus.jukebox, message);
  if (isRouseError(error, 'io-error') || isRouseError(error, 'corrupt-data')) {
    return new NfsError(NfsStatus.io, message);
  }
  return new NfsError(NfsStatus.serverfault, message);
}
