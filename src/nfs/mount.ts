import { isPromise, type MaybePromise } from '../lib/maybe-promise.ts';
import { nfsLimits } from '../limits.ts';
import type { Export, ExportTable } from './exports.ts';
import { type FileId, NfsError, NfsStatus } from './file-system.ts';
import { HANDLE_BYTES } from './handles.ts';
import { type AdmittedCall, replyStatusOnly } from './programs.ts';
import { AcceptStatus, AUTH_NONE, AUTH_SYS, REPLY_HEADER_BYTES, writeAccepted } from './rpc.ts';

/**
 * MOUNT version 3 (RFC 1813 appendix I). MNT takes an export's path or a directory below it, and
 * gives the handle of that directory to clients of the export only; what a handle may do is checked
 * again on each NFS call. Who mounted what is remembered, a bounded number: for DUMP, and so that no
 * export is taken away from a client without a word. It grants nothing.
 */
export const MOUNT_PROGRAM = 100_005;
export const MOUNT_VERSION = 3;

const Procedure = { null: 0, mnt: 1, dump: 2, umnt: 3, umntall: 4, export: 5 } as const;

/** mountstat3 (RFC 1813 5.1.5). */
const MountStatus = {
  ok: 0,
  noent: 2,
  io: 5,
  acces: 13,
  notdir: 20,
  inval: 22,
  nametoolong: 63,
  serverfault: 10_006,
} as const;
type MountStatus = (typeof MountStatus)[keyof typeof MountStatus];

/** MNTPATHLEN, MNTNAMLEN (RFC 1813 5.1.2). */
const PATH_BYTES_MAX = 1_024;

export class MountProgram {
  readonly #table: ExportTable;
  /** `address path` of each mount, in the order made. */
  readonly #mounts = new Map<string, { address: string; path: string }>();

  constructor(table: ExportTable) {
    this.#table = table;
  }

  call(call: AdmittedCall): void {
    switch (call.procedure) {
      case Procedure.null:
        call.args.done();
        return replyStatusOnly(call, AcceptStatus.success);
      case Procedure.mnt:
        return this.#mount(call);
      case Procedure.dump:
        return this.#dump(call);
      case Procedure.umnt:
        return this.#unmount(call);
      case Procedure.umntall:
        call.args.done();
        this.#forget(call.address, undefined);
        return replyStatusOnly(call, AcceptStatus.success);
      case Procedure.export:
        return this.#exports(call);
      default:
        return replyStatusOnly(call, AcceptStatus.procedureUnavailable);
    }
  }

  /** Who used an export that is gone has nothing mounted of it. */
  exportRemoved(path: string): void {
    for (const [key, mount] of this.#mounts) {
      if (mount.path === path || mount.path.startsWith(`${path}/`)) this.#mounts.delete(key);
    }
  }

  /** Addresses that mounted it or a directory of it, and did not unmount it. */
  mountedBy(exportPath: string): string[] {
    const addresses = new Set<string>();
    for (const { address, path } of this.#mounts.values()) {
      if (path === exportPath || path.startsWith(`${exportPath}/`)) addresses.add(address);
    }
    return [...addresses];
  }

  #mount(call: AdmittedCall): void {
    const path = call.args.text(PATH_BYTES_MAX);
    call.args.done();
    const covering = this.#table.covering(path);
    if (covering === undefined) return replyFailure(call, MountStatus.noent);
    const { found, below } = covering;
    if (!found.clients.allows(call.address)) {
      found.refused++;
      return replyFailure(call, MountStatus.acces);
    }
    let directory: MaybePromise<FileId>;
    try {
      directory = walk(found, below);
    } catch (error) {
      return replyFailure(call, mountStatusOf(error));
    }
    const whole = [found.path, ...below].join('/');
    if (!isPromise(directory)) return this.#mounted(call, found, whole, directory);
    found.enter();
    void directory
      .then((file) => this.#mounted(call, found, whole, file))
      .catch((error) => replyFailure(call, mountStatusOf(error)))
      .finally(() => found.leave());
  }

  #mounted(call: AdmittedCall, found: Export, path: string, directory: FileId): void {
    const generation = found.fileSystem.generation(directory);
    if (generation === undefined) return replyFailure(call, MountStatus.noent);
    const key = `${call.address} ${path}`;
    if (this.#mounts.size >= nfsLimits.mountsMax) {
      for (const oldest of this.#mounts.keys()) {
        this.#mounts.delete(oldest);
        break;
      }
    }
    this.#mounts.set(key, { address: call.address, path });
    call.reply(REPLY_HEADER_BYTES + 4 + 4 + HANDLE_BYTES + 12, (writer) => {
      writeAccepted(writer, call.xid, AcceptStatus.success);
      writer.u32(MountStatus.ok);
      found.handles.write(writer, directory, generation >>> 0);
      writer.u32(2);
      writer.u32(AUTH_SYS);
      writer.u32(AUTH_NONE);
    });
  }

  #unmount(call: AdmittedCall): void {
    const path = call.args.text(PATH_BYTES_MAX);
    call.args.done();
    this.#forget(call.address, path);
    replyStatusOnly(call, AcceptStatus.success);
  }

  #forget(address: string, path: string | undefined): void {
    const wanted = path === undefined ? undefined : `/${path.split('/').filter(Boolean).join('/')}`;
    for (const [key, mount] of this.#mounts) {
      if (mount.address === address && (wanted === undefined || mount.path === wanted)) {
        this.#mounts.delete(key);
      }
    }
  }

  /** mountlist: host and directory of each mount; as many as one reply may hold. */
  #dump(call: AdmittedCall): void {
    call.args.done();
    call.reply(nfsLimits.mountReplyBytesMax, (writer) => {
      writeAccepted(writer, call.xid, AcceptStatus.success);
      for (const { address, path } of this.#mounts.values()) {
        if (writer.position + 32 + address.length + 3 * path.length > writer.bytes.length) break;
        writer.bool(true);
        writer.text(address);
        writer.text(path);
      }
      writer.bool(false);
    });
  }

  /** exports: each path with its clients as groups. */
  #exports(call: AdmittedCall): void {
    call.args.done();
    call.reply(nfsLimits.mountReplyBytesMax, (writer) => {
      const end = writer.position + nfsLimits.mountReplyBytesMax;
      writeAccepted(writer, call.xid, AcceptStatus.success);
      for (const one of this.#table.all()) {
        const names = one.clients.texts;
        const bytes = names.reduce((sum, name) => sum + 12 + name.length, 32);
        if (writer.position + bytes + 3 * one.path.length > end) break;
        writer.bool(true);
        writer.text(one.path);
        for (const name of names) {
          writer.bool(true);
          writer.text(name);
        }
        writer.bool(false);
      }
      writer.bool(false);
    });
  }
}

/** From the export's root down, through directories only: no link leads anywhere. */
function walk(found: Export, below: readonly string[]): MaybePromise<FileId> {
  const { fileSystem } = found;
  if (below.length === 0) return fileSystem.root;
  return (async () => {
    let at = fileSystem.root;
    for (const name of below) {
      at = await fileSystem.lookup(at, name);
      const { kind } = await fileSystem.attributes(at);
      if (kind !== 'directory') throw new NfsError(NfsStatus.notdir);
    }
    return at;
  })();
}

function mountStatusOf(error: unknown): MountStatus {
  if (!(error instanceof NfsError)) return MountStatus.serverfault;
  switch (error.status) {
    case NfsStatus.noent:
    case NfsStatus.stale:
      return MountStatus.noent;
    case NfsStatus.notdir:
      return MountStatus.notdir;
    case NfsStatus.acces:
    case NfsStatus.perm:
      return MountStatus.acces;
    case NfsStatus.nametoolong:
      return MountStatus.nametoolong;
    case NfsStatus.inval:
      return MountStatus.inval;
    default:
      return MountStatus.io;
  }
}

function replyFailure(call: AdmittedCall, status: MountStatus): void {
  call.reply(REPLY_HEADER_BYTES + 4, (writer) => {
    writeAccepted(writer, call.xid, AcceptStatus.success);
    writer.u32(status);
  });
}
