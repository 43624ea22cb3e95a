import { nfsLimits } from '../../limits.ts';
import { NfsError, NfsStatus } from '../file-system.ts';
import { chain, type ProcedureRow } from './call.ts';
import { checkChange, NAME_BYTES_MAX, readAttributeChange } from './types.ts';
import { readTime } from './types.ts';

/** Procedures on one file, and on the file system: RFC 1813 3.3.2, 3.3.4, 3.3.5, 3.3.18 to 3.3.21. */

export const setAttributes: ProcedureRow = {
  tells: ['wcc'],
  bytesMax: 0,
  once: true,
  run: (call, args) => {
    const file = call.file(0);
    const change = readAttributeChange(args);
    const guard = args.bool() ? readTime(args) : undefined;
    args.done();
    checkChange(change);
    const done = call.change(() => call.fileSystem.setAttributes(file, change, guard));
    return chain(done, () => (writer) => call.tell(writer, 0));
  },
};

/** ACCESS3_* (RFC 1813 3.3.4): six bits. */
const ACCESS_BITS = 0x3f;

export const access: ProcedureRow = {
  tells: ['attributes'],
  bytesMax: 4,
  run: (call, args) => {
    const file = call.file(0);
    const wanted = args.u32() & ACCESS_BITS;
    args.done();
    return chain(call.fileSystem.access(file, wanted, call.caller), (granted) => (writer) => {
      call.tell(writer, 0);
      writer.u32(granted & wanted);
    });
  },
};

export const readLink: ProcedureRow = {
  tells: ['attributes'],
  bytesMax: 4 + nfsLimits.pathBytesMax + 4,
  run: (call, args) => {
    const file = call.file(0);
    args.done();
    return chain(call.fileSystem.readLink(file), (target) => {
      const bytes = Buffer.from(target);
      if (bytes.length > nfsLimits.pathBytesMax) throw new NfsError(NfsStatus.nametoolong);
      return (writer) => {
        call.tell(writer, 0);
        writer.opaque(bytes);
      };
    });
  },
};

export const fileSystemStatus: ProcedureRow = {
  tells: ['attributes'],
  bytesMax: 52,
  run: (call, args) => {
    call.file(0);
    args.done();
    return chain(call.fileSystem.space(), (space) => (writer) => {
      call.tell(writer, 0);
      writer.u64Number(space.totalBytes);
      writer.u64Number(space.freeBytes);
      writer.u64Number(space.freeBytes);
      writer.u64Number(space.totalFiles);
      writer.u64Number(space.freeFiles);
      writer.u64Number(space.freeFiles);
      // invarsec: these figures may change at any moment.
      writer.u32(0);
    });
  },
};

/** FSF3_LINK, FSF3_SYMLINK, FSF3_HOMOGENEOUS, FSF3_CANSETTIME (RFC 1813 3.3.19). */
const PROPERTIES = 0x01 | 0x02 | 0x08 | 0x10;

/** Multiples that suit: pages of the write layer. */
const TRANSFER_MULTIPLE_BYTES = 4_096;

/** "A small dtpref": directories here hold a dozen files. */
const DIRECTORY_PREFERRED_BYTES = 8_192;

export const fileSystemInfo: ProcedureRow = {
  tells: ['attributes'],
  bytesMax: 48,
  run: (call, args) => {
    call.file(0);
    args.done();
    return (writer) => {
      call.tell(writer, 0);
      for (let readThenWrite = 0; readThenWrite < 2; readThenWrite++) {
        writer.u32(nfsLimits.transferBytesMax);
        writer.u32(nfsLimits.transferBytesMax);
        writer.u32(TRANSFER_MULTIPLE_BYTES);
      }
      writer.u32(DIRECTORY_PREFERRED_BYTES);
      writer.u64Number(Number.MAX_SAFE_INTEGER);
      // time_delta: nanoseconds.
      writer.u32(0);
      writer.u32(1);
      writer.u32(PROPERTIES);
    };
  },
};

/** LINK_MAX of ext4; nothing here needs as many. */
const LINKS_MAX = 65_000;

export const pathConfiguration: ProcedureRow = {
  tells: ['attributes'],
  bytesMax: 24,
  run: (call, args) => {
    call.file(0);
    args.done();
    return (writer) => {
      call.tell(writer, 0);
      writer.u32(LINKS_MAX);
      writer.u32(NAME_BYTES_MAX);
      writer.bool(true); // no_trunc
      writer.bool(true); // chown_restricted
      writer.bool(false); // case_insensitive
      writer.bool(true); // case_preserving
    };
  },
};

export const commit: ProcedureRow = {
  tells: ['wcc'],
  bytesMax: 8,
  run: (call, args) => {
    const file = call.file(0);
    const offset = args.u64Number();
    const count = args.u32();
    args.done();
    // A range that no file has: the whole file is more than was asked, and right.
    const beyond = offset > Number.MAX_SAFE_INTEGER - count;
    const done = call.change(() =>
      call.fileSystem.commit(file, beyond ? 0 : offset, beyond ? 0 : count),
    );
    // The verifier as it is now that all is durable: when anything was lost before, it differs from
    // the one that the WRITE was answered with.
    return chain(done, () => (writer) => {
      call.tell(writer, 0);
      writer.u64(call.fileSystem.writeVerifier);
    });
  },
};
