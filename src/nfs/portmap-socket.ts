import { createSocket, type RemoteInfo, type Socket } from 'node:dgram';
import { RouseError, systemErrorCode } from '../errors.ts';
import { normalAddress } from './clients.ts';
import type { NfsLog } from './shared.ts';
import { PORTMAP_PROGRAM, type PortmapProgram } from './portmap.ts';
import { type AdmittedCall, replyStatusOnly } from './programs.ts';
import { AcceptStatus, CallHeader, Verdict, writeDenied } from './rpc.ts';
import { XdrError, XdrReader, XdrWriter } from './xdr.ts';

/** A datagram may be as long as UDP allows; a portmap call has below 1 KiB. */
const REPLY_BYTES_MAX = 16_640;

/** The portmapper on UDP, where kernels and rpcinfo ask first. */
export class PortmapSocket {
  readonly #socket: Socket;
  readonly #program: PortmapProgram;
  readonly #address: string;

  private constructor(socket: Socket, program: PortmapProgram, address: string) {
    this.#socket = socket;
    this.#program = program;
    this.#address = address;
  }

  /** Throws `port-taken`, or what else the system says, as RouseError. */
  static async open(
    program: PortmapProgram,
    address: string,
    port: number,
    ipv6Only: boolean,
    log: NfsLog,
  ): Promise<PortmapSocket> {
    const type = address.includes(':') ? 'udp6' : 'udp4';
    const socket = createSocket({ type, ipv6Only: type === 'udp6' && ipv6Only });
    await new Promise<void>((resolve, reject) => {
      socket.once('error', (error) => reject(bindError(error, address, port, 'udp')));
      socket.bind({ address, port, exclusive: true }, () => resolve());
    });
    socket.removeAllListeners('error');
    // A reply that cannot be delivered (ICMP) is no fault of ours; UDP clients ask again.
    socket.on('error', (error) => log.info({ error }, 'portmap: a datagram failed'));
    const made = new PortmapSocket(socket, program, normalAddress(address));
    socket.on('message', (message, from) => made.#onMessage(message, from));
    return made;
  }

  get port(): number {
    return this.#socket.address().port;
  }

  close(): Promise<void> {
    return new Promise((resolve) => this.#socket.close(() => resolve()));
  }

  #onMessage(message: Buffer, from: RemoteInfo): void {
    const header = new CallHeader();
    const args = XdrReader.of(message);
    const verdict = header.read(args);
    const { xid } = header;
    const reply: AdmittedCall['reply'] = (bytesMax, write) => {
      const writer = XdrWriter.ofSize(Math.min(bytesMax, REPLY_BYTES_MAX));
      write(writer);
      this.#socket.send(writer.written(), from.port, from.address, () => undefined);
    };
    if (verdict === Verdict.drop) return;
    if (verdict !== Verdict.accept) {
      return reply(64, (writer) => writeDenied(writer, xid, verdict));
    }
    const wildcard = this.#address === '0.0.0.0' || this.#address === '::';
    const call: AdmittedCall = {
      xid,
      version: header.version,
      procedure: header.procedure,
      args,
      address: normalAddress(from.address),
      localAddress: wildcard ? undefined : this.#address,
      reply,
    };
    if (header.program !== PORTMAP_PROGRAM) {
      return replyStatusOnly(call, AcceptStatus.programUnavailable);
    }
    try {
      this.#program.call(call);
    } catch (error) {
      if (!(error instanceof XdrError)) throw error;
      replyStatusOnly(call, AcceptStatus.garbageArguments);
    }
  }
}

/** What binding a port failed with, in words. */
export function bindError(
  error: unknown,
  address: string,
  port: number,
  protocol: 'tcp' | 'udp',
): RouseError {
  const where = `${protocol} port ${port} on ${address}`;
  switch (systemErrorCode(error)) {
    case 'EADDRINUSE':
      return new RouseError('port-taken', `${where} is used by another program`, {
        cause: error,
        details: { address, port, protocol },
      });
    case 'EACCES':
      return new RouseError('port-taken', `${where} may not be opened by this user`, {
        cause: error,
        advice: 'Ports below 1024 need root or CAP_NET_BIND_SERVICE; or choose higher ports.',
        details: { address, port, protocol },
      });
    case 'EADDRNOTAVAIL':
      return new RouseError('bad-request', `${where}: this machine has no such address`, {
        cause: error,
        advice: 'Listen on an address of this machine, or on 0.0.0.0 and ::.',
      });
    default:
      return new RouseError('internal', `${where} cannot be opened: ${String(error)}`, {
        cause: error,
      });
  }
}
