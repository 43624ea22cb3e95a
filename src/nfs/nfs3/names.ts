import type { MaybePromise } from '../../lib/maybe-promise.ts';
import type { CreateHow, FileId } from '../file-system.ts';
import { NfsError, NfsStatus } from '../file-system.ts';
import { HANDLE_BYTES } from '../handles.ts';
import { type XdrReader, XdrError } from '../xdr.ts';
import { chain, type Encode, type Nfs3Call, type ProcedureRow } from './call.ts';
import { checkChange, checkedName, checkedTarget, POST_ATTRIBUTE_BYTES } from './types.ts';
import { readAttributeChange, readName, writePostAttributes, writePostHandle } from './types.ts';

/** Procedures on names in directories: RFC 1813 3.3.3, 3.3.8 to 3.3.15. */

/** post_op_fh3 with a handle of ours. */
export const POST_HANDLE_BYTES = 8 + HANDLE_BYTES;

/** `.` and `..` cannot be made, removed or renamed; what is said about it differs. */
function ordinaryName(bytes: Buffer, otherwise: NfsStatus): string {
  const name = checkedName(bytes);
  if (name === '.' || name === '..') throw new NfsError(otherwise);
  return name;
}

export const lookup: ProcedureRow = {
  tells: ['attributes'],
  bytesMax: POST_HANDLE_BYTES + POST_ATTRIBUTE_BYTES,
  run: (call, args) => {
    const directory = call.file(0);
    const bytes = readName(args);
    args.done();
    const { fileSystem, from } = call;
    return chain(find(call, directory, checkedName(bytes)), (file) => {
      const generation = fileSystem.generation(file);
      if (generation === undefined) throw new NfsError(NfsStatus.noent);
      return chain(fileSystem.attributes(file), (attributes): Encode => (writer) => {
        from.handles.write(writer, file, generation >>> 0);
        writePostAttributes(writer, from, attributes);
        call.tell(writer, 0);
      });
    });
  },
};

function find(call: Nfs3Call, directory: FileId, name: string): MaybePromise<FileId> {
  const { fileSystem } = call;
  if (name !== '.' && name !== '..') return fileSystem.lookup(directory, name);
  // Asking for the parent of what is no directory has to fail as a lookup in it does.
  return chain(fileSystem.attributes(directory), ({ kind }): MaybePromise<FileId> => {
    if (kind !== 'directory') throw new NfsError(NfsStatus.notdir);
    return name === '.' ? directory : fileSystem.parent(directory);
  });
}

/** The reply of CREATE, MKDIR and SYMLINK: post_op_fh3, post_op_attr, wcc_data of the directory. */
const MADE_BYTES = POST_HANDLE_BYTES + POST_ATTRIBUTE_BYTES;

function tellMade(call: Nfs3Call, made: MaybePromise<FileId>): MaybePromise<Encode> {
  return chain(made, (file) =>
    chain(call.fileSystem.attributes(file), (attributes): Encode => (writer) => {
      writePostHandle(writer, call.from, file);
      writePostAttributes(writer, call.from, attributes);
      call.tell(writer, 0);
    }),
  );
}

export const create: ProcedureRow = {
  tells: ['wcc'],
  bytesMax: MADE_BYTES,
  once: true,
  run: (call, args) => {
    const directory = call.file(0);
    const bytes = readName(args);
    const how = readCreateHow(args);
    args.done();
    const name = ordinaryName(bytes, NfsStatus.exist);
    if (how.mode !== 'exclusive') checkChange(how.change);
    return tellMade(
      call,
      call.change(() => call.fileSystem.create(directory, name, how)),
    );
  },
};

/** createhow3: UNCHECKED, GUARDED, EXCLUSIVE (RFC 1813 3.3.8). */
function readCreateHow(args: XdrReader): CreateHow {
  const mode = args.u32();
  if (mode === 0) return { mode: 'unchecked', change: readAttributeChange(args) };
  if (mode === 1) return { mode: 'guarded', change: readAttributeChange(args) };
  if (mode === 2) return { mode: 'exclusive', verifier: args.u64() };
  throw new XdrError(`createmode3 ${mode}`);
}

export const makeDirectory: ProcedureRow = {
  tells: ['wcc'],
  bytesMax: MADE_BYTES,
  once: true,
  run: (call, args) => {
    const directory = call.file(0);
    const bytes = readName(args);
    const change = readAttributeChange(args);
    args.done();
    const name = ordinaryName(bytes, NfsStatus.exist);
    checkChange(change);
    return tellMade(
      call,
      call.change(() => call.fileSystem.makeDirectory(directory, name, change)),
    );
  },
};

export const makeSymlink: ProcedureRow = {
  tells: ['wcc'],
  bytesMax: MADE_BYTES,
  once: true,
  run: (call, args) => {
    const directory = call.file(0);
    const bytes = readName(args);
    const change = readAttributeChange(args);
    const target = args.opaque(args.remaining);
    args.done();
    const name = ordinaryName(bytes, NfsStatus.exist);
    const text = checkedTarget(target);
    return tellMade(
      call,
      call.change(() => call.fileSystem.makeSymlink(directory, name, text, change)),
    );
  },
};

/** NF3BLK, NF3CHR, NF3SOCK, NF3FIFO; the others cannot be made with MKNOD (RFC 1813 3.3.11). */
const nodeTypes = new Set([3, 4, 6, 7]);

export const makeNode: ProcedureRow = {
  tells: ['wcc'],
  bytesMax: 0,
  run: (call, args) => {
    call.file(0);
    readName(args);
    const type = args.u32();
    return call.change(() => {
      throw new NfsError(nodeTypes.has(type) ? NfsStatus.notsupp : NfsStatus.badtype);
    });
  },
};

export const remove: ProcedureRow = {
  tells: ['wcc'],
  bytesMax: 0,
  once: true,
  run: (call, args) => {
    const directory = call.file(0);
    const bytes = readName(args);
    args.done();
    const name = ordinaryName(bytes, NfsStatus.inval);
    const done = call.change(() => call.fileSystem.remove(directory, name));
    return chain(done, (): Encode => (writer) => call.tell(writer, 0));
  },
};

export const removeDirectory: ProcedureRow = {
  tells: ['wcc'],
  bytesMax: 0,
  once: true,
  run: (call, args) => {
    const directory = call.file(0);
    const bytes = readName(args);
    args.done();
    const name = checkedName(bytes);
    // RFC 1813 3.3.13 names both.
    if (name === '.') throw new NfsError(NfsStatus.inval);
    if (name === '..') throw new NfsError(NfsStatus.exist);
    const done = call.change(() => call.fileSystem.removeDirectory(directory, name));
    return chain(done, (): Encode => (writer) => call.tell(writer, 0));
  },
};

export const rename: ProcedureRow = {
  tells: ['wcc', 'wcc'],
  bytesMax: 0,
  once: true,
  run: (call, args) => {
    const from = call.file(0);
    const fromBytes = readName(args);
    const to = call.file(1);
    const toBytes = readName(args);
    args.done();
    const fromName = ordinaryName(fromBytes, NfsStatus.inval);
    const toName = ordinaryName(toBytes, NfsStatus.inval);
    const done = call.change(() => call.fileSystem.rename(from, fromName, to, toName));
    return chain(done, (): Encode => (writer) => call.tellAll(writer));
  },
};

export const link: ProcedureRow = {
  tells: ['attributes', 'wcc'],
  bytesMax: 0,
  once: true,
  run: (call, args) => {
    const file = call.file(0);
    const directory = call.file(1);
    const bytes = readName(args);
    args.done();
    const name = ordinaryName(bytes, NfsStatus.exist);
    const done = call.change(() => call.fileSystem.link(file, directory, name));
    return chain(done, (): Encode => (writer) => call.tellAll(writer));
  },
};
