import { nfsLimits } from '../limits.ts';
import { XdrError, type XdrReader, type XdrWriter } from './xdr.ts';

/**
 * ONC RPC version 2 (RFC 5531): the call header, read in place, and every kind of reply. Record
 * marking is in records.ts.
 */

/** msg_type, reply_stat, accept_stat, reject_stat (RFC 5531 9). */
const CALL = 0;
const REPLY = 1;
const MSG_ACCEPTED = 0;
const MSG_DENIED = 1;
const RPC_MISMATCH = 0;
const AUTH_ERROR = 1;
export const RPC_VERSION = 2;

export const AcceptStatus = {
  success: 0,
  programUnavailable: 1,
  programMismatch: 2,
  procedureUnavailable: 3,
  garbageArguments: 4,
  systemError: 5,
} as const;
export type AcceptStatus = (typeof AcceptStatus)[keyof typeof AcceptStatus];

/** auth_stat (RFC 5531 9). */
export const AuthStatus = { ok: 0, badCredential: 1, rejectedCredential: 2 } as const;

/** auth_flavor (RFC 5531 8.2). */
export const AUTH_NONE = 0;
export const AUTH_SYS = 1;

/** Opaque credentials and verifiers are at most 400 bytes (RFC 5531 8.2). */
const AUTH_BYTES_MAX = 400;
/** authsys_parms: machinename<255>, gids<16> (RFC 5531 appendix A). */
const MACHINE_NAME_MAX = 255;
export const AUTH_SYS_GROUPS_MAX = 16;

/** The uid and gid of somebody who gave no credential. */
const NOBODY = 65_534;

/** What to do with a message after its header was read. */
export const Verdict = {
  /** Answer the call. */
  accept: 0,
  /** Another version of RPC: MSG_DENIED, RPC_MISMATCH. */
  versionMismatch: 1,
  /** MSG_DENIED, AUTH_ERROR. */
  badCredential: 2,
  rejectedCredential: 3,
  /** Not a call at all: nothing that could be answered. */
  drop: 4,
} as const;
export type Verdict = (typeof Verdict)[keyof typeof Verdict];

/** The header of one call; reused from call to call. */
export class CallHeader {
  xid = 0;
  program = 0;
  version = 0;
  procedure = 0;
  flavor = 0;
  #credentialAt = 0;

  /** Reads the header; `reader` then stands at the arguments. */
  read(reader: XdrReader): Verdict {
    if (reader.remaining < 8) return Verdict.drop;
    this.xid = reader.u32();
    if (reader.u32() !== CALL) return Verdict.drop;
    try {
      if (reader.u32() !== RPC_VERSION) return Verdict.versionMismatch;
      this.program = reader.u32();
      this.version = reader.u32();
      this.procedure = reader.u32();
      return this.#readCredential(reader);
    } catch (error) {
      if (error instanceof XdrError) return Verdict.badCredential;
      throw error;
    }
  }

  #readCredential(reader: XdrReader): Verdict {
    this.flavor = reader.u32();
    const length = reader.count(AUTH_BYTES_MAX);
    const at = reader.skip(length);
    this.#credentialAt = at;
    reader.u32();
    reader.skip(reader.count(AUTH_BYTES_MAX));
    if (this.flavor === AUTH_NONE) return Verdict.accept;
    if (this.flavor !== AUTH_SYS) return Verdict.rejectedCredential;
    return isAuthSys(reader, at, length) ? Verdict.accept : Verdict.badCredential;
  }

  /** uid, gid and groups. Only while `reader` still holds the call's bytes. */
  caller(reader: XdrReader): { uid: number; gid: number; groups: number[] } {
    if (this.flavor !== AUTH_SYS) return { uid: NOBODY, gid: NOBODY, groups: [] };
    const at = reader.position;
    reader.position = this.#credentialAt + 4;
    reader.skip(reader.u32());
    const uid = reader.u32();
    const gid = reader.u32();
    const groups = reader.u32Array(AUTH_SYS_GROUPS_MAX);
    reader.position = at;
    return { uid, gid, groups };
  }
}

/** Whether a credential has the shape of authsys_parms; on every call, so without allocating. */
function isAuthSys(reader: XdrReader, at: number, length: number): boolean {
  if (length < 20) return false;
  const nameLength = reader.view.getUint32(at + 4);
  if (nameLength > MACHINE_NAME_MAX) return false;
  const groupsAt = 8 + ((nameLength + 3) & ~3) + 8;
  if (groupsAt + 4 > length) return false;
  const groups = reader.view.getUint32(at + groupsAt);
  return groups <= AUTH_SYS_GROUPS_MAX && groupsAt + 4 + groups * 4 === length;
}

/** Bytes of an accepted reply before its results: xid, REPLY, accepted, verifier, status. */
export const REPLY_HEADER_BYTES = 24;

/** An accepted reply with an AUTH_NONE verifier; results follow on `success`. */
export function writeAccepted(writer: XdrWriter, xid: number, status: AcceptStatus): void {
  const { view, position } = writer;
  view.setUint32(position, xid);
  view.setUint32(position + 4, REPLY);
  view.setUint32(position + 8, MSG_ACCEPTED);
  view.setUint32(position + 12, AUTH_NONE);
  view.setUint32(position + 16, 0);
  view.setUint32(position + 20, status);
  writer.position = position + REPLY_HEADER_BYTES;
}

export function writeProgramMismatch(
  writer: XdrWriter,
  xid: number,
  lowest: number,
  highest: number,
): void {
  writeAccepted(writer, xid, AcceptStatus.programMismatch);
  writer.u32(lowest);
  writer.u32(highest);
}

/** The reply to a call that was not let in. */
export function writeDenied(writer: XdrWriter, xid: number, verdict: Verdict): void {
  writer.u32(xid);
  writer.u32(REPLY);
  writer.u32(MSG_DENIED);
  if (verdict === Verdict.versionMismatch) {
    writer.u32(RPC_MISMATCH);
    writer.u32(RPC_VERSION);
    writer.u32(RPC_VERSION);
    return;
  }
  writer.u32(AUTH_ERROR);
  writer.u32(
    verdict === Verdict.badCredential ? AuthStatus.badCredential : AuthStatus.rejectedCredential,
  );
}

/** A call header with AUTH_NONE, for the little that we ask of a running rpcbind. */
export function writeCall(
  writer: XdrWriter,
  xid: number,
  program: number,
  version: number,
  procedure: number,
): void {
  for (const value of [xid, CALL, RPC_VERSION, program, version, procedure]) writer.u32(value);
  for (let index = 0; index < 4; index++) writer.u32(0);
}

/** The accept status of a reply to `xid`, or undefined when it is no accepted reply to it. */
export function readReply(reader: XdrReader, xid: number): AcceptStatus | undefined {
  if (reader.u32() !== xid || reader.u32() !== REPLY) return undefined;
  if (reader.u32() !== MSG_ACCEPTED) return undefined;
  reader.u32();
  reader.skip(reader.count(AUTH_BYTES_MAX));
  const status = reader.u32();
  return status <= AcceptStatus.systemError ? (status as AcceptStatus) : undefined;
}

/** The last-fragment bit of a record mark (RFC 5531 11). */
export const LAST_FRAGMENT = 0x8000_0000;

export const recordBytesMax = nfsLimits.recordBytesMax;
