import { connect, type Socket } from 'node:net';
import { RouseError, systemErrorCode } from '../errors.ts';
import { nfsLimits } from '../limits.ts';
import { PORTMAP_PROGRAM, type Registration, universalAddress } from './portmap.ts';
import { RecordSplitter } from './records.ts';
import { AcceptStatus, LAST_FRAGMENT, readReply, writeCall } from './rpc.ts';
import { XdrReader, XdrWriter } from './xdr.ts';

/**
 * Telling a running rpcbind of our programs, when it holds port 111: over its unix socket, where it
 * knows us by our user, or else over TCP from a privileged port of loopback, as version 2 has it.
 */
export interface RpcbindOptions {
  readonly socketPath: string;
  readonly port: number;
  readonly families: readonly (4 | 6)[];
}

const SET = 1;
const UNSET = 2;
const GETPORT = 3;
const IPPROTO_TCP = 6;

type Version = 2 | 3;

export async function register(
  registrations: readonly Registration[],
  options: RpcbindOptions,
): Promise<void> {
  await withRpcbind(options, async (ask, version) => {
    for (const one of registrations) {
      await clearLeftover(one, options);
      for (const call of callsFor(one, version, options.families)) {
        if (await ask(SET, call)) continue;
        throw new RouseError('port-taken', `rpcbind refuses program ${one.program}`, {
          advice: 'Look at rpcinfo -p: stop the other server, or take its registration away.',
        });
      }
    }
  });
}

/**
 * What a killed server left behind is in the way: rpcbind refuses a second registration. It is
 * taken away when nobody listens there; another server that runs is left alone.
 */
async function clearLeftover(one: Registration, options: RpcbindOptions): Promise<void> {
  const there = await registeredPort(one, options);
  if (there === 0) return;
  if (there !== one.port && (await isListening(there))) {
    throw new RouseError(
      'port-taken',
      `rpcbind knows program ${one.program} on port ${there}: another server runs there`,
      { advice: 'Stop the other NFS server (see rpcinfo -p), or choose portmap "off".' },
    );
  }
  await unregister([one], options);
}

export async function unregister(
  registrations: readonly Registration[],
  options: RpcbindOptions,
): Promise<void> {
  await withRpcbind(options, async (ask, version) => {
    for (const one of registrations) {
      for (const call of callsFor(one, version, options.families)) await ask(UNSET, call);
    }
  });
}

/** PMAPPROC_GETPORT; 0: not registered. */
async function registeredPort(one: Registration, options: RpcbindOptions): Promise<number> {
  const socket = await dial({ host: '127.0.0.1', port: options.port }).catch((error: unknown) => {
    throw unreachable(error);
  });
  try {
    const results = await request(socket, 2, 1, GETPORT, (writer) => {
      for (const value of [one.program, one.version, IPPROTO_TCP, 0]) writer.u32(value);
    });
    return results ?? 0;
  } finally {
    socket.destroy();
  }
}

async function isListening(port: number): Promise<boolean> {
  try {
    const socket = await dial({ host: '127.0.0.1', port });
    socket.destroy();
    return true;
  } catch {
    return false;
  }
}

type Arguments = (writer: XdrWriter) => void;

/** struct mapping of version 2, struct rpcb of version 3 (RFC 1833). */
function callsFor(one: Registration, version: Version, families: readonly (4 | 6)[]): Arguments[] {
  if (version === 2) {
    return [
      (writer) => {
        for (const value of [one.program, one.version, IPPROTO_TCP, one.port]) writer.u32(value);
      },
    ];
  }
  return families.map((family) => (writer) => {
    writer.u32(one.program);
    writer.u32(one.version);
    writer.text(family === 4 ? one.protocol : `${one.protocol}6`);
    writer.text(universalAddress(family === 4 ? '0.0.0.0' : '::', one.port));
    writer.text('superuser');
  });
}

type Ask = (procedure: number, args: Arguments) => Promise<boolean>;

async function withRpcbind(
  options: RpcbindOptions,
  work: (ask: Ask, version: Version) => Promise<void>,
): Promise<void> {
  const { socket, version } = await open(options);
  let xid = 1;
  try {
    const ask: Ask = async (procedure, args) =>
      (await request(socket, version, xid++, procedure, args)) === 1;
    await work(ask, version);
  } finally {
    socket.destroy();
  }
}

async function open(options: RpcbindOptions): Promise<{ socket: Socket; version: Version }> {
  try {
    return { socket: await dial({ path: options.socketPath }), version: 3 };
  } catch (error) {
    const code = systemErrorCode(error);
    if (code !== 'ENOENT' && code !== 'ECONNREFUSED' && code !== 'EACCES') throw error;
  }
  // Version 2 believes callers on loopback with a port below 1024, which needs root.
  for (let localPort = 1_023; localPort > 1_000; localPort--) {
    try {
      const target = { host: '127.0.0.1', port: options.port, localPort };
      return { socket: await dial(target), version: 2 };
    } catch (error) {
      const code = systemErrorCode(error);
      if (code === 'EADDRINUSE' || code === 'EADDRNOTAVAIL') continue;
      throw unreachable(error);
    }
  }
  throw unreachable(undefined);
}

function unreachable(cause: unknown): RouseError {
  const message = 'something holds port 111, and it is no rpcbind that we may register with';
  return new RouseError('port-taken', message, {
    cause,
    advice: 'Run as root, or stop rpcbind, or switch the portmapper off (clients then need ports).',
  });
}

function dial(
  target: { path: string } | { host: string; port: number; localPort?: number },
): Promise<Socket> {
  return new Promise((resolve, reject) => {
    const socket = connect(target);
    socket.setTimeout(nfsLimits.portmapTimeoutMs, () => {
      socket.destroy(new RouseError('time-out', 'rpcbind does not answer'));
    });
    socket.once('error', reject);
    socket.once('connect', () => {
      socket.off('error', reject);
      resolve(socket);
    });
  });
}

/** One call and its result, a u32 in all of them; undefined: not accepted. */
function request(
  socket: Socket,
  version: Version,
  xid: number,
  procedure: number,
  args: Arguments,
): Promise<number | undefined> {
  const writer = XdrWriter.ofSize(1_024);
  writer.position = 4;
  writeCall(writer, xid, PORTMAP_PROGRAM, version, procedure);
  args(writer);
  writer.view.setUint32(0, (LAST_FRAGMENT | (writer.position - 4)) >>> 0);
  const splitter = new RecordSplitter(4_096);
  return new Promise((resolve, reject) => {
    const finish = (settle: () => void) => {
      socket.off('data', onData);
      socket.off('error', onError);
      socket.off('close', onClose);
      settle();
    };
    const onError = (error: Error) => finish(() => reject(error));
    const onClose = () => finish(() => reject(unreachable(undefined)));
    const onData = (chunk: Buffer) => {
      try {
        splitter.push(chunk);
        if (!splitter.next()) return;
        const reader = XdrReader.of(splitter.span.bytes.subarray(splitter.span.start));
        const accepted = readReply(reader, xid) === AcceptStatus.success;
        const result = accepted ? reader.u32() : undefined;
        finish(() => resolve(result));
      } catch (error) {
        finish(() => reject(error instanceof Error ? error : new Error(String(error))));
      }
    };
    socket.on('data', onData);
    socket.on('error', onError);
    socket.on('close', onClose);
    socket.write(writer.written());
  });
}
