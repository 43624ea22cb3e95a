import * as fs from 'node:fs/promises';
import * as net from 'node:net';
import { RouseError, systemErrorCode, toRouseError } from '../errors.ts';
import { nbdLimits } from '../limits.ts';
import { systemClock } from '../lib/clock.ts';
import type { Clock } from '../lib/clock.ts';
import type { ReadableDisk, WritableDisk } from '../lib/disk.ts';
import { serveSession } from './session.ts';
import { Wire } from './wire.ts';

/** A disk under a name. Without `writable` it is served read-only. */
export interface NbdExport {
  readonly name: string;
  readonly description?: string;
  readonly disk: ReadableDisk;
  /** The same disk, when clients may write. */
  readonly writable?: WritableDisk;
}

export interface NbdServerOptions {
  /** A unix socket's path, made with mode 0600; otherwise host and port (0: any free one). */
  readonly socket?: string;
  readonly host?: string;
  readonly port?: number;
  /** Asked anew for each connection; the first one answers to the empty name as well. */
  exports(): readonly NbdExport[];
  readonly clock?: Clock;
  /** Told when a request fails below us: what the client hears is only a number. */
  readonly onError?: (error: RouseError, exportName: string) => void;
}

export interface NbdServer {
  readonly socket: string | undefined;
  readonly port: number | undefined;
  readonly connections: number;
  /** Ends all connections, after what is in flight; removes the socket. The disks stay open. */
  close(): Promise<void>;
}

/** Serves disks until closed. Fails with `port-taken` when something listens there. */
export async function serveNbd(options: NbdServerOptions): Promise<NbdServer> {
  const connections = new Set<Connection>();
  const server = net.createServer((socket) => {
    if (connections.size >= nbdLimits.connectionsMax) {
      socket.destroy();
      return;
    }
    socket.setNoDelay(true);
    // A host that lost its power sends no farewell.
    socket.setKeepAlive(true, nbdLimits.handshakeMsMax);
    const wire = new Wire(socket);
    const session = { ...options, clock: options.clock ?? systemClock };
    const done = serveSession(wire, session).catch((error: unknown) => {
      options.onError?.(toRouseError(error, placeOf(options)), '');
    });
    const connection = { wire, done };
    connections.add(connection);
    void done.finally(() => connections.delete(connection));
  });
  await listen(server, options);
  const address = server.address();
  return {
    socket: options.socket,
    port: typeof address === 'object' && address !== null ? address.port : undefined,
    get connections() {
      return connections.size;
    },
    close: () => closeServer(server, connections),
  };
}

interface Connection {
  readonly wire: Wire;
  readonly done: Promise<void>;
}

async function closeServer(server: net.Server, connections: Set<Connection>): Promise<void> {
  const closed = new Promise<void>((resolve) => server.close(() => resolve()));
  const ends = [...connections].map((connection) => {
    connection.wire.destroy();
    return connection.done;
  });
  await Promise.all(ends);
  await closed;
}

async function listen(server: net.Server, options: NbdServerOptions): Promise<void> {
  try {
    await listenOnce(server, options);
  } catch (error) {
    const isStale = options.socket !== undefined && systemErrorCode(error) === 'EADDRINUSE';
    if (!isStale || !(await removeStaleSocket(options.socket ?? ''))) {
      throw toRouseError(error, placeOf(options));
    }
    await listenOnce(server, options).catch((second: unknown) => {
      throw toRouseError(second, placeOf(options));
    });
  }
  if (options.socket !== undefined) await fs.chmod(options.socket, 0o600);
}

function placeOf(options: NbdServerOptions): string {
  return options.socket ?? `${options.host ?? 'localhost'}:${options.port ?? 0}`;
}

function listenOnce(server: net.Server, options: NbdServerOptions): Promise<void> {
  return new Promise((resolve, reject) => {
    server.once('error', reject);
    const listening = () => {
      server.off('error', reject);
      resolve();
    };
    if (options.socket !== undefined) server.listen({ path: options.socket }, listening);
    else server.listen({ host: options.host ?? 'localhost', port: options.port ?? 0 }, listening);
  });
}

/** A killed server leaves its socket behind: one that nobody answers may go. */
async function removeStaleSocket(path: string): Promise<boolean> {
  const answers = await new Promise<boolean>((resolve) => {
    const probe = net.connect({ path });
    probe.once('connect', () => {
      probe.destroy();
      resolve(true);
    });
    probe.once('error', (error) => resolve(systemErrorCode(error) !== 'ECONNREFUSED'));
  });
  if (answers) return false;
  await fs.rm(path, { force: true });
  return true;
}
