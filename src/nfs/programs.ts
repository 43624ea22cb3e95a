import { AcceptStatus, REPLY_HEADER_BYTES, writeAccepted, writeProgramMismatch } from './rpc.ts';
import type { XdrReader, XdrWriter } from './xdr.ts';

/** A call of MOUNT or PORTMAP, from TCP or UDP, after its header was read. */
export interface AdmittedCall {
  readonly xid: number;
  readonly version: number;
  readonly procedure: number;
  readonly args: XdrReader;
  /** The client's address in its one spelling. */
  readonly address: string;
  /** The address of ours that the client called; undefined when it is not known. */
  readonly localAddress: string | undefined;
  /** At most `bytesMax`; may be called later, and is ignored when the client is gone. */
  readonly reply: (bytesMax: number, write: (writer: XdrWriter) => void) => void;
}

export function replyStatusOnly(call: AdmittedCall, status: AcceptStatus): void {
  call.reply(REPLY_HEADER_BYTES, (writer) => writeAccepted(writer, call.xid, status));
}

export function replyMismatch(call: AdmittedCall, lowest: number, highest: number): void {
  call.reply(REPLY_HEADER_BYTES + 8, (writer) => {
    writeProgramMismatch(writer, call.xid, lowest, highest);
  });
}
