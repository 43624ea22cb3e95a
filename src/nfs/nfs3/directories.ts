import { isPromise, type MaybePromise } from '../../lib/maybe-promise.ts';
import { nfsLimits } from '../../limits.ts';
import type { Attributes, DirectoryEntry, DirectoryPage, FileId } from '../file-system.ts';
import { NfsError, NfsStatus } from '../file-system.ts';
import type { XdrReader, XdrWriter } from '../xdr.ts';
import { padded } from '../xdr.ts';
import { chain, type Encode, type Nfs3Call, type ProcedureRow } from './call.ts';
import { POST_HANDLE_BYTES } from './names.ts';
import { POST_ATTRIBUTE_BYTES, writePostAttributes, writePostHandle } from './types.ts';

/** READDIR and READDIRPLUS (RFC 1813 3.3.16 and 3.3.17). */

/** dir_attributes, cookieverf, the end of the list, eof: what a reply takes without entries. */
const FRAME_BYTES = POST_ATTRIBUTE_BYTES + 8 + 4 + 4;
/** The mark that an entry follows, fileid, the name's length, cookie. */
const ENTRY_BYTES = 4 + 8 + 4 + 8;

/** Cookies stay valid while a directory changes, so that the verifier never does: always zero. */
function readCookie(args: XdrReader): { cookie: bigint; verifier: bigint } {
  return { cookie: args.u64(), verifier: args.u64() };
}

function checkVerifier(cookie: bigint, verifier: bigint): void {
  if (cookie !== 0n && verifier !== 0n) throw new NfsError(NfsStatus.badCookie);
}

function bounded(bytes: number): number {
  if (bytes < FRAME_BYTES) throw new NfsError(NfsStatus.toosmall);
  return Math.min(bytes, nfsLimits.directoryBytesMax);
}

/** No more entries than could fit, were all names one byte long. */
function entriesMax(bytes: number): number {
  const count = Math.floor((bytes - FRAME_BYTES) / (ENTRY_BYTES + 4));
  return Math.max(1, Math.min(count, nfsLimits.directoryEntriesMax));
}

function entryBytes(entry: DirectoryEntry): number {
  return ENTRY_BYTES + padded(Buffer.byteLength(entry.name));
}

/** How many entries from the start fit into `bytes`, each costing `cost`. */
function fitting(
  page: DirectoryPage,
  bytes: number,
  cost: (entry: DirectoryEntry) => number,
): DirectoryEntry[] {
  const fit: DirectoryEntry[] = [];
  let left = bytes;
  for (const entry of page.entries) {
    left -= cost(entry);
    if (left < 0) break;
    fit.push(entry);
  }
  if (fit.length === 0 && page.entries.length > 0) throw new NfsError(NfsStatus.toosmall);
  return fit;
}

function writeEntry(writer: XdrWriter, entry: DirectoryEntry): void {
  writer.bool(true);
  writer.u64Number(entry.fileId);
  writer.text(entry.name);
  writer.u64(entry.cookie);
}

export const readDirectory: ProcedureRow = {
  tells: ['attributes'],
  bytesMax: nfsLimits.directoryBytesMax,
  run: (call, args) => {
    const directory = call.file(0);
    const { cookie, verifier } = readCookie(args);
    const count = args.u32();
    args.done();
    checkVerifier(cookie, verifier);
    const bytes = bounded(count);
    const pending = call.fileSystem.readDirectory(directory, cookie, entriesMax(bytes));
    return chain(pending, (page): Encode => {
      const entries = fitting(page, bytes - FRAME_BYTES, entryBytes);
      const eof = page.eof && entries.length === page.entries.length;
      return (writer) => {
        call.tell(writer, 0);
        writer.u64(0n);
        for (const entry of entries) writeEntry(writer, entry);
        writer.bool(false);
        writer.bool(eof);
      };
    });
  },
};

export const readDirectoryPlus: ProcedureRow = {
  tells: ['attributes'],
  bytesMax: nfsLimits.directoryBytesMax,
  run: (call, args) => {
    const directory = call.file(0);
    const { cookie, verifier } = readCookie(args);
    const nameBytes = args.u32();
    const count = args.u32();
    args.done();
    checkVerifier(cookie, verifier);
    const bytes = bounded(count);
    // dircount bounds names and cookies alone; one entry is always given (RFC 1813 3.3.17).
    const limit = entriesMax(Math.min(bytes, Math.max(nameBytes, FRAME_BYTES)));
    const pending = call.fileSystem.readDirectory(directory, cookie, limit);
    return chain(pending, (page): MaybePromise<Encode> => {
      const entries = fitting(page, bytes - FRAME_BYTES, plusBytes);
      const eof = page.eof && entries.length === page.entries.length;
      const known = entries.map((entry) => attributesOf(call, entry.fileId));
      if (!known.some((one) => isPromise(one))) {
        return encodePlus(call, entries, known as (Attributes | undefined)[], eof);
      }
      return Promise.all(known).then((all) => encodePlus(call, entries, all, eof));
    });
  },
};

function plusBytes(entry: DirectoryEntry): number {
  return entryBytes(entry) + POST_ATTRIBUTE_BYTES + POST_HANDLE_BYTES;
}

/** An entry that vanished meanwhile is listed without attributes. */
function attributesOf(call: Nfs3Call, file: FileId): MaybePromise<Attributes | undefined> {
  try {
    const attributes = call.fileSystem.attributes(file);
    return isPromise(attributes) ? attributes.catch(() => undefined) : attributes;
  } catch {
    return undefined;
  }
}

function encodePlus(
  call: Nfs3Call,
  entries: readonly DirectoryEntry[],
  attributes: readonly (Attributes | undefined)[],
  eof: boolean,
): Encode {
  return (writer) => {
    call.tell(writer, 0);
    writer.u64(0n);
    for (const [index, entry] of entries.entries()) {
      writeEntry(writer, entry);
      writePostAttributes(writer, call.from, attributes[index]);
      writePostHandle(writer, call.from, entry.fileId);
    }
    writer.bool(false);
    writer.bool(eof);
  };
}
