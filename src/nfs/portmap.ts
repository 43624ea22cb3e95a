import { isIP } from 'node:net';
import { type AdmittedCall, replyMismatch, replyStatusOnly } from './programs.ts';
import { AcceptStatus, REPLY_HEADER_BYTES, writeAccepted } from './rpc.ts';
import type { XdrWriter } from './xdr.ts';

/**
 * The portmapper: version 2 (RFC 1833 3) as ESXi, libnfs and kernels ask it, versions 3 and 4
 * (RFC 1833 2) for those that begin there. It tells of our own programs only: SET and UNSET are
 * refused, and calls are not forwarded (CALLIT is an amplifier).
 */
export const PORTMAP_PROGRAM = 100_000;
export const PORTMAP_PORT = 111;

const IPPROTO_TCP = 6;
const IPPROTO_UDP = 17;

/** One program as it is reachable. */
export interface Registration {
  readonly program: number;
  readonly version: number;
  readonly protocol: 'tcp' | 'udp';
  readonly port: number;
}

/** Procedures of version 2; of 3 and 4 where they differ. */
const V2 = { null: 0, set: 1, unset: 2, getport: 3, dump: 4 } as const;
const V3 = { null: 0, set: 1, unset: 2, getaddr: 3, dump: 4, gettime: 6, getversaddr: 9 } as const;

const TEXT_BYTES_MAX = 1_024;

export class PortmapProgram {
  readonly #registrations: readonly Registration[];
  readonly #families: readonly (4 | 6)[];
  readonly #now: () => number;

  /** `families`: which kinds of addresses are listened on; `now`: the wall clock. */
  constructor(
    registrations: readonly Registration[],
    families: readonly (4 | 6)[],
    now: () => number,
  ) {
    this.#registrations = registrations;
    this.#families = families;
    this.#now = now;
  }

  call(call: AdmittedCall): void {
    if (call.version === 2) return this.#call2(call);
    if (call.version === 3 || call.version === 4) return this.#call34(call);
    replyMismatch(call, 2, 4);
  }

  #call2(call: AdmittedCall): void {
    switch (call.procedure) {
      case V2.null:
        return replyStatusOnly(call, AcceptStatus.success);
      case V2.set:
      case V2.unset:
        return replyValue(call, 0);
      case V2.getport: {
        const program = call.args.u32();
        const version = call.args.u32();
        const protocol = call.args.u32();
        call.args.u32();
        call.args.done();
        const name = protocol === IPPROTO_TCP ? 'tcp' : protocol === IPPROTO_UDP ? 'udp' : '';
        return replyValue(call, this.#find(program, version, name)?.port ?? 0);
      }
      case V2.dump:
        call.args.done();
        return this.#dump(call, (writer, one) => {
          writer.u32(one.protocol === 'tcp' ? IPPROTO_TCP : IPPROTO_UDP);
          writer.u32(one.port);
        });
      default:
        return replyStatusOnly(call, AcceptStatus.procedureUnavailable);
    }
  }

  #call34(call: AdmittedCall): void {
    switch (call.procedure) {
      case V3.null:
        return replyStatusOnly(call, AcceptStatus.success);
      case V3.set:
      case V3.unset:
        return replyValue(call, 0);
      case V3.getaddr:
        return this.#address(call);
      case V3.getversaddr:
        if (call.version === 4) return this.#address(call);
        return replyStatusOnly(call, AcceptStatus.procedureUnavailable);
      case V3.dump:
        call.args.done();
        return this.#dump(call, (writer, one, family) => {
          writer.text(family === 4 ? one.protocol : `${one.protocol}6`);
          writer.text(universalAddress(family === 4 ? '0.0.0.0' : '::', one.port));
          writer.text('superuser');
        });
      case V3.gettime:
        return replyValue(call, Math.floor(this.#now() / 1000));
      default:
        return replyStatusOnly(call, AcceptStatus.procedureUnavailable);
    }
  }

  /** RPCBPROC_GETADDR: where the program is, on the address that the client asked. */
  #address(call: AdmittedCall): void {
    const program = call.args.u32();
    const version = call.args.u32();
    const netid = call.args.text(TEXT_BYTES_MAX);
    call.args.text(TEXT_BYTES_MAX);
    call.args.text(TEXT_BYTES_MAX);
    call.args.done();
    const local = call.localAddress ?? (isIP(call.address) === 6 ? '::' : '0.0.0.0');
    const family = isIP(local) === 6 ? '6' : '';
    // An empty netid asks for the transport that the question came on.
    const wanted = netid === '' ? `tcp${family}` : netid;
    const protocol = wanted === `tcp${family}` ? 'tcp' : wanted === `udp${family}` ? 'udp' : '';
    const found = this.#find(program, version, protocol);
    const text = found === undefined ? '' : universalAddress(local, found.port);
    call.reply(REPLY_HEADER_BYTES + 4 + 64, (writer) => {
      writeAccepted(writer, call.xid, AcceptStatus.success);
      writer.text(text);
    });
  }

  /** Any version of a program is told when the one asked for is not served: its call then says so. */
  #find(program: number, version: number, protocol: string): Registration | undefined {
    const same = this.#registrations.filter(
      (one) => one.program === program && one.protocol === protocol,
    );
    return same.find((one) => one.version === version) ?? same[0];
  }

  #dump(
    call: AdmittedCall,
    writeRest: (writer: XdrWriter, one: Registration, family: 4 | 6) => void,
  ): void {
    const families = call.version === 2 ? ([4] as const) : this.#families;
    call.reply(16_384, (writer) => {
      writeAccepted(writer, call.xid, AcceptStatus.success);
      for (const family of families) {
        for (const one of this.#registrations) {
          writer.bool(true);
          writer.u32(one.program);
          writer.u32(one.version);
          writeRest(writer, one, family);
        }
      }
      writer.bool(false);
    });
  }
}

function replyValue(call: AdmittedCall, value: number): void {
  call.reply(REPLY_HEADER_BYTES + 4, (writer) => {
    writeAccepted(writer, call.xid, AcceptStatus.success);
    writer.u32(value);
  });
}

/** Universal address of TCP and UDP (RFC 5665 5.2.3.3 and 5.2.3.4). */
export function universalAddress(address: string, port: number): string {
  return `${address}.${port >> 8}.${port & 255}`;
}
