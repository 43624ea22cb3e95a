import { isUtf8 } from 'node:buffer';
import { isRouseError } from '../../errors.ts';
import { nfsLimits } from '../../limits.ts';
import type { Export } from '../exports.ts';
import type { AttributeChange, Attributes, FileId, NfsTime } from '../file-system.ts';
import { NfsError, NfsStatus } from '../file-system.ts';
import type { XdrReader, XdrWriter } from '../xdr.ts';

/** The types of RFC 1813 2.5 and 2.6 on the wire. */

export const NFS_PROGRAM = 100_003;
export const NFS_VERSION = 3;

/** Procedures (RFC 1813 3.3). */
export const Procedure = {
  null: 0,
  getattr: 1,
  setattr: 2,
  lookup: 3,
  access: 4,
  readlink: 5,
  read: 6,
  write: 7,
  create: 8,
  mkdir: 9,
  symlink: 10,
  mknod: 11,
  remove: 12,
  rmdir: 13,
  rename: 14,
  link: 15,
  readdir: 16,
  readdirplus: 17,
  fsstat: 18,
  fsinfo: 19,
  pathconf: 20,
  commit: 21,
} as const;
export type Procedure = (typeof Procedure)[keyof typeof Procedure];

/** ftype3 (RFC 1813 2.5.5). */
const NF3REG = 1;
const NF3DIR = 2;
const NF3LNK = 5;

/** fattr3 on the wire. */
export const ATTRIBUTE_BYTES = 84;
/** post_op_attr with attributes. */
export const POST_ATTRIBUTE_BYTES = 4 + ATTRIBUTE_BYTES;
/** wcc_data with everything: pre_op_attr and post_op_attr. */
export const WCC_BYTES = 4 + 24 + POST_ATTRIBUTE_BYTES;

function setU64(view: DataView, at: number, value: number): void {
  const high = value > 0xffff_ffff ? Math.floor(value / 0x1_0000_0000) : 0;
  view.setUint32(at, high);
  view.setUint32(at + 4, value - high * 0x1_0000_0000);
}

/** fattr3 (RFC 1813 2.5.5), in place. */
export function putAttributes(view: DataView, at: number, from: Export, a: Attributes): void {
  view.setUint32(at, a.kind === 'file' ? NF3REG : a.kind === 'directory' ? NF3DIR : NF3LNK);
  view.setUint32(at + 4, a.mode);
  view.setUint32(at + 8, a.links);
  view.setUint32(at + 12, a.uid);
  view.setUint32(at + 16, a.gid);
  setU64(view, at + 20, a.sizeBytes);
  setU64(view, at + 28, a.usedBytes);
  view.setUint32(at + 36, 0);
  view.setUint32(at + 40, 0);
  view.setUint32(at + 44, from.fsidHigh);
  view.setUint32(at + 48, from.fsidLow);
  setU64(view, at + 52, a.fileId);
  view.setUint32(at + 60, a.accessed.seconds);
  view.setUint32(at + 64, a.accessed.nanoseconds);
  view.setUint32(at + 68, a.modified.seconds);
  view.setUint32(at + 72, a.modified.nanoseconds);
  view.setUint32(at + 76, a.changed.seconds);
  view.setUint32(at + 80, a.changed.nanoseconds);
}

export function writeAttributes(writer: XdrWriter, from: Export, attributes: Attributes): void {
  putAttributes(writer.view, writer.position, from, attributes);
  writer.position += ATTRIBUTE_BYTES;
}

/** post_op_attr (RFC 1813 2.6). */
export function writePostAttributes(
  writer: XdrWriter,
  from: Export | undefined,
  attributes: Attributes | undefined,
): void {
  if (from === undefined || attributes === undefined) return writer.u32(0);
  writer.u32(1);
  writeAttributes(writer, from, attributes);
}

/** wcc_data (RFC 1813 2.6). */
export function writeWcc(
  writer: XdrWriter,
  from: Export | undefined,
  before: Attributes | undefined,
  after: Attributes | undefined,
): void {
  if (before === undefined) {
    writer.u32(0);
  } else {
    writer.u32(1);
    writer.u64Number(before.sizeBytes);
    writeTime(writer, before.modified);
    writeTime(writer, before.changed);
  }
  writePostAttributes(writer, from, after);
}

function writeTime(writer: XdrWriter, time: NfsTime): void {
  writer.u32(time.seconds);
  writer.u32(time.nanoseconds);
}

/** post_op_fh3 (RFC 1813 2.6). */
export function writePostHandle(writer: XdrWriter, from: Export, file: FileId): void {
  const generation = from.fileSystem.generation(file);
  if (generation === undefined) return writer.u32(0);
  writer.u32(1);
  from.handles.write(writer, file, generation >>> 0);
}

export function readTime(reader: XdrReader): NfsTime {
  return { seconds: reader.u32(), nanoseconds: reader.u32() };
}

/** sattr3 (RFC 1813 2.5.14). */
export function readAttributeChange(reader: XdrReader): AttributeChange {
  const change: { -readonly [Name in keyof AttributeChange]: AttributeChange[Name] } = {};
  // 07777: permission bits and nothing else (RFC 1813 2.5.2).
  if (reader.bool()) change.mode = reader.u32() & 0o7777;
  if (reader.bool()) change.uid = reader.u32();
  if (reader.bool()) change.gid = reader.u32();
  if (reader.bool()) change.sizeBytes = reader.u64Number();
  const accessed = readTimeChange(reader);
  if (accessed !== undefined) change.accessed = accessed;
  const modified = readTimeChange(reader);
  if (modified !== undefined) change.modified = modified;
  return change;
}

/** A size that a file can have here; checked after all arguments were read. */
export function checkChange(change: AttributeChange): void {
  if ((change.sizeBytes ?? 0) > Number.MAX_SAFE_INTEGER) throw new NfsError(NfsStatus.fbig);
  for (const time of [change.accessed, change.modified]) {
    if (typeof time === 'object' && time.nanoseconds > 999_999_999) {
      throw new NfsError(NfsStatus.inval);
    }
  }
}

/** set_atime, set_mtime: DONT_CHANGE, SET_TO_SERVER_TIME, SET_TO_CLIENT_TIME. */
function readTimeChange(reader: XdrReader): NfsTime | 'server' | undefined {
  const how = reader.u32();
  if (how === 0) return undefined;
  if (how === 1) return 'server';
  if (how === 2) return readTime(reader);
  throw new NfsError(NfsStatus.inval, 'an unknown time_how');
}

/** A file name as it came; `checkedName` says whether it can be one. */
export function readName(reader: XdrReader): Buffer {
  return reader.opaque(reader.remaining);
}

/** NAME_MAX of the port: 1 to 255 bytes of UTF-8 without `/` and NUL. */
export const NAME_BYTES_MAX = 255;

export function checkedName(bytes: Buffer): string {
  if (bytes.length === 0) throw new NfsError(NfsStatus.inval, 'an empty name');
  if (bytes.length > NAME_BYTES_MAX) throw new NfsError(NfsStatus.nametoolong);
  if (bytes.includes(0x2f) || bytes.includes(0) || !isUtf8(bytes)) {
    throw new NfsError(NfsStatus.inval, 'a name that is not UTF-8, or holds / or NUL');
  }
  return bytes.toString('utf8');
}

/** The target of a symlink. */
export function checkedTarget(bytes: Buffer): string {
  if (bytes.length > nfsLimits.pathBytesMax) throw new NfsError(NfsStatus.nametoolong);
  if (bytes.length === 0 || bytes.includes(0) || !isUtf8(bytes)) {
    throw new NfsError(NfsStatus.inval, 'a target that is empty, not UTF-8, or holds NUL');
  }
  return bytes.toString('utf8');
}

/** What a thrown value means on the wire; undefined: a fault of ours, to be logged. */
export function statusOf(error: unknown): NfsStatus | undefined {
  if (error instanceof NfsError) return error.status;
  if (isRouseError(error, 'disk-full')) return NfsStatus.nospc;
  if (isRouseError(error, 'quota-exceeded')) return NfsStatus.dquot;
  if (isRouseError(error, 'corrupt-data')) return NfsStatus.io;
  if (isRouseError(error, 'io-error')) return NfsStatus.io;
  return undefined;
}
