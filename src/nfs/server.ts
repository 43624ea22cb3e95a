import { createServer, isIP, type Server, type Socket } from 'node:net';
import { RouseError } from '../errors.ts';
import type { Clock } from '../lib/clock.ts';
import { nfsLimits } from '../limits.ts';
import { normalAddress } from './clients.ts';
import { Connection } from './connection.ts';
import { DuplicateRequests } from './duplicates.ts';
import { type ExportDefinition, type ExportStatus, ExportTable } from './exports.ts';
import { MOUNT_PROGRAM, MOUNT_VERSION, MountProgram } from './mount.ts';
import { NextCall } from './next-call.ts';
import { callNfs3 } from './nfs3/program.ts';
import { NFS_PROGRAM, NFS_VERSION } from './nfs3/types.ts';
import { PORTMAP_PORT, PORTMAP_PROGRAM, PortmapProgram, type Registration } from './portmap.ts';
import { bindError, PortmapSocket } from './portmap-socket.ts';
import { type AdmittedCall, replyMismatch, replyStatusOnly } from './programs.ts';
import { RecentWrites } from './recent-writes.ts';
import { register, type RpcbindOptions, unregister } from './rpcbind.ts';
import { AcceptStatus } from './rpc.ts';
import { SegmentPool } from './segments.ts';
import type { NfsLog, Shared } from './shared.ts';

/**
 * The NFS server: listeners, the connections of clients, the exports that they may use, and the
 * portmapper that tells them where. An export may be added and removed while clients are served.
 * One thread; what waits is bounded per connection and in all (limits.ts).
 */
export interface NfsServer {
  /** Throws `port-taken` and leaves nothing open when a port cannot be had. */
  start(): Promise<void>;
  /** Answers what is in flight, ends all connections, takes registrations away. */
  close(): Promise<void>;
  /** From now on its clients can mount it. Throws `already-exists`, `bad-request`. */
  addExport(definition: ExportDefinition): void;
  /** Its handles are stale at once; resolves when no call is inside it. False: there was none. */
  removeExport(path: string): Promise<boolean>;
  exports(): ExportStatus[];
  readonly nfsPort: number;
  readonly mountPort: number;
  readonly portmapper: PortmapperState;
  readonly connections: number;
  /** Bytes of calls that wait for file systems, on all connections. */
  readonly inFlightBytes: number;
}

/** `bound`: we are it. `registered`: with a running rpcbind. `unavailable`: clients need ports. */
export type PortmapperState = 'off' | 'bound' | 'registered' | 'unavailable';

export interface NfsServerOptions {
  readonly clock: Clock;
  readonly log: NfsLog;
  readonly listen: ListenOptions;
  /** Bytes of calls in flight on all connections; `nfsLimits.serverBytesMax` when not given. */
  readonly inFlightBytesMax?: number;
  /** Notes about WRITEs, a power of two; `nfsLimits.writeNotesMax` when not given. */
  readonly writeNotesMax?: number;
}

export interface ListenOptions {
  /** Addresses of this machine; `0.0.0.0` and `::` mean all. */
  readonly addresses: readonly string[];
  /** 0: any free port. */
  readonly nfsPort: number;
  /** The same as `nfsPort`, or another; 0: any free port. Both answer NFS and MOUNT. */
  readonly mountPort: number;
  /**
   * `bind`: be the portmapper, or fail. `register`: with a running rpcbind, or fail. `auto`: the
   * one that works, or go without and say so.
   */
  readonly portmap: 'bind' | 'register' | 'auto' | 'off';
  /** 111 unless a test says otherwise. */
  readonly portmapPort?: number;
  /** Where a running rpcbind listens: /run/rpcbind.sock. */
  readonly rpcbindSocket?: string;
}

export function createNfsServer(options: NfsServerOptions): NfsServer {
  return new RunningServer(options);
}

class RunningServer implements NfsServer {
  readonly #options: NfsServerOptions;
  readonly #shared: Shared;
  readonly #table = new ExportTable();
  readonly #mount = new MountProgram(this.#table);
  readonly #connections = new Set<Connection>();
  readonly #bySerial = new Map<number, Connection>();
  readonly #perAddress = new Map<string, number>();
  #listeners: Server[] = [];
  #portmapSockets: PortmapSocket[] = [];
  #portmapProgram: PortmapProgram | undefined;
  #registrations: Registration[] = [];
  #sweeping = new AbortController();
  nfsPort = 0;
  mountPort = 0;
  portmapper: PortmapperState = 'off';

  constructor(options: NfsServerOptions) {
    this.#options = options;
    this.#shared = {
      clock: options.clock,
      log: options.log,
      table: this.#table,
      pool: new SegmentPool(),
      duplicates: new DuplicateRequests(),
      writes: new RecentWrites(
        this.#table,
        (serial) => this.#bySerial.get(serial)?.replaced(),
        options.writeNotesMax,
      ),
      nextCall: new NextCall(options.clock),
      lastWrites: undefined,
      lastSerial: 0,
      inFlightBytes: 0,
      inFlightBytesMax: options.inFlightBytesMax ?? nfsLimits.serverBytesMax,
      stalled: new Set(),
      dispatch: (connection) => this.#dispatch(connection),
    };
  }

  get connections(): number {
    return this.#connections.size;
  }

  get inFlightBytes(): number {
    return this.#shared.inFlightBytes;
  }

  async start(): Promise<void> {
    const { listen } = this.#options;
    if (listen.addresses.length === 0) {
      throw new RouseError('bad-request', 'the NFS server has no address to listen on');
    }
    try {
      this.nfsPort = await this.#listenOnAll(listen.nfsPort);
      const same = listen.mountPort === listen.nfsPort && listen.nfsPort !== 0;
      this.mountPort = same ? this.nfsPort : await this.#listenOnAll(listen.mountPort);
      this.#registrations = [
        { program: NFS_PROGRAM, version: NFS_VERSION, protocol: 'tcp', port: this.nfsPort },
        { program: MOUNT_PROGRAM, version: MOUNT_VERSION, protocol: 'tcp', port: this.mountPort },
      ];
      await this.#startPortmapper();
    } catch (error) {
      await this.close();
      throw error;
    }
    void this.#sweep();
  }

  async close(): Promise<void> {
    this.#sweeping.abort();
    const listeners = this.#listeners
      .splice(0)
      .map((listener) => new Promise<void>((resolve) => listener.close(() => resolve())));
    const sockets = this.#portmapSockets.splice(0).map((socket) => socket.close());
    if (this.portmapper === 'registered') await this.#unregister();
    this.portmapper = 'off';
    for (const connection of this.#connections) connection.end();
    await this.#connectionsGone();
    await Promise.all([...listeners, ...sockets]);
  }

  addExport(definition: ExportDefinition): void {
    this.#table.add(definition, this.#options.clock.now());
  }

  async removeExport(path: string): Promise<boolean> {
    const removed = this.#table.remove(path);
    if (removed === undefined) return false;
    this.#mount.exportRemoved(removed.path);
    for (const connection of this.#connections) connection.used.delete(removed);
    await removed.idle();
    return true;
  }

  exports(): ExportStatus[] {
    return this.#table.all().map((one) => {
      const connected = new Set<string>();
      for (const connection of this.#connections) {
        if (connection.used.has(one)) connected.add(connection.address);
      }
      return one.status([...connected], this.#mount.mountedBy(one.path));
    });
  }

  // -- listeners and connections ----------------------------------------------------------------

  /** The same port on all addresses; 0 is settled by the first. */
  async #listenOnAll(wanted: number): Promise<number> {
    let port = wanted;
    for (const address of this.#options.listen.addresses) port = await this.#listen(address, port);
    return port;
  }

  async #listen(address: string, port: number): Promise<number> {
    const listener = createServer({ allowHalfOpen: true }, (socket) => this.#accept(socket));
    listener.maxConnections = nfsLimits.connectionsMax;
    await new Promise<void>((resolve, reject) => {
      listener.once('error', (error) => reject(bindError(error, address, port, 'tcp')));
      const ipv6Only = this.#ipv6Only;
      listener.listen({ host: address, port, ipv6Only, exclusive: true }, () => resolve());
    });
    listener.removeAllListeners('error');
    listener.on('error', (error) => {
      this.#options.log.warn({ error }, 'a listener of the NFS server failed');
    });
    this.#listeners.push(listener);
    const bound = listener.address();
    return typeof bound === 'object' && bound !== null ? bound.port : port;
  }

  /** `::` serves IPv4 as well, unless an IPv4 address is listened on beside it. */
  get #ipv6Only(): boolean {
    return this.#options.listen.addresses.some((address) => isIP(address) === 4);
  }

  #accept(socket: Socket): void {
    const address = normalAddress(socket.remoteAddress ?? '');
    const count = (this.#perAddress.get(address) ?? 0) + 1;
    const full = this.#connections.size >= nfsLimits.connectionsMax;
    if (full || count > nfsLimits.connectionsPerAddressMax) {
      socket.on('error', () => socket.destroy());
      socket.destroy();
      return;
    }
    this.#perAddress.set(address, count);
    const connection = new Connection(this.#shared, socket);
    this.#connections.add(connection);
    this.#bySerial.set(connection.serial, connection);
    socket.once('close', () => {
      this.#connections.delete(connection);
      this.#bySerial.delete(connection.serial);
      const left = (this.#perAddress.get(address) ?? 1) - 1;
      if (left === 0) this.#perAddress.delete(address);
      else this.#perAddress.set(address, left);
    });
  }

  /** Waits for connections that were asked to end, then cuts what is left. */
  async #connectionsGone(): Promise<void> {
    const { clock } = this.#options;
    const until = clock.monotonic() + nfsLimits.closeTimeoutMs;
    while (this.#connections.size > 0 && clock.monotonic() < until) {
      for (const connection of this.#connections) connection.cutWhenQuiet();
      if (this.#connections.size > 0) await clock.sleep(10);
    }
    for (const connection of this.#connections) connection.destroy();
  }

  /** Ends, now and then, connections that stopped half-way. */
  async #sweep(): Promise<void> {
    const { clock } = this.#options;
    const { signal } = this.#sweeping;
    while (!signal.aborted) {
      await clock.sleep(nfsLimits.sweepIntervalMs, signal).catch(() => undefined);
      if (signal.aborted) return;
      const nowMs = clock.monotonic();
      for (const connection of this.#connections) connection.sweep(nowMs);
    }
  }

  // -- programs ---------------------------------------------------------------------------------

  #dispatch(connection: Connection): void {
    const { program, version } = connection.header;
    if (program === NFS_PROGRAM) {
      if (version === NFS_VERSION) return callNfs3(connection);
      return replyMismatch(admitted(connection), NFS_VERSION, NFS_VERSION);
    }
    const call = admitted(connection);
    if (program === MOUNT_PROGRAM) {
      if (version === MOUNT_VERSION) return this.#mount.call(call);
      return replyMismatch(call, MOUNT_VERSION, MOUNT_VERSION);
    }
    if (program === PORTMAP_PROGRAM && this.#portmapProgram !== undefined) {
      return this.#portmapProgram.call(call);
    }
    replyStatusOnly(call, AcceptStatus.programUnavailable);
  }

  // -- the portmapper ---------------------------------------------------------------------------

  async #startPortmapper(): Promise<void> {
    const { portmap } = this.#options.listen;
    if (portmap === 'off') return;
    if (portmap === 'register') return this.#register();
    try {
      await this.#bindPortmapper();
    } catch (error) {
      if (portmap === 'bind') throw error;
      await this.#registerIfPossible(error);
    }
  }

  async #bindPortmapper(): Promise<void> {
    const { listen, clock, log } = this.#options;
    const port = listen.portmapPort ?? PORTMAP_PORT;
    const own = [2, 3, 4].flatMap((version) =>
      (['tcp', 'udp'] as const).map((protocol) => ({
        program: PORTMAP_PROGRAM,
        version,
        protocol,
        port,
      })),
    );
    const all = [...own, ...this.#registrations];
    const program = new PortmapProgram(all, this.#families, () => clock.now());
    const listenersBefore = this.#listeners.length;
    try {
      for (const address of listen.addresses) {
        const bound = await this.#listen(address, port);
        const socket = await PortmapSocket.open(program, address, bound, this.#ipv6Only, log);
        this.#portmapSockets.push(socket);
      }
    } catch (error) {
      for (const listener of this.#listeners.splice(listenersBefore)) listener.close();
      for (const socket of this.#portmapSockets.splice(0)) await socket.close();
      throw error;
    }
    this.#portmapProgram = program;
    this.portmapper = 'bound';
  }

  get #families(): (4 | 6)[] {
    const { addresses } = this.#options.listen;
    const families: (4 | 6)[] = [];
    const ipv4 = addresses.some((one) => isIP(one) === 4 || (one === '::' && !this.#ipv6Only));
    if (ipv4) families.push(4);
    if (addresses.some((one) => isIP(one) === 6)) families.push(6);
    return families.length === 0 ? [4] : families;
  }

  get #rpcbind(): RpcbindOptions {
    const { listen } = this.#options;
    return {
      socketPath: listen.rpcbindSocket ?? '/run/rpcbind.sock',
      port: listen.portmapPort ?? PORTMAP_PORT,
      families: this.#families,
    };
  }

  async #register(): Promise<void> {
    await register(this.#registrations, this.#rpcbind);
    this.portmapper = 'registered';
  }

  async #registerIfPossible(bindFailure: unknown): Promise<void> {
    try {
      await this.#register();
    } catch (error) {
      this.portmapper = 'unavailable';
      const facts = { bindFailure, error, nfsPort: this.nfsPort, mountPort: this.mountPort };
      this.#options.log.warn(facts, 'no portmapper on port 111: clients have to be given ports');
    }
  }

  async #unregister(): Promise<void> {
    try {
      await unregister(this.#registrations, this.#rpcbind);
    } catch (error) {
      // rpcbind ended before us; its list is gone with it.
      this.#options.log.info({ error }, 'rpcbind could not be told that the server ends');
    }
  }
}

function admitted(connection: Connection): AdmittedCall {
  const { header, reader, address, localAddress } = connection;
  return {
    xid: header.xid,
    version: header.version,
    procedure: header.procedure,
    args: reader,
    address,
    localAddress,
    reply: (bytesMax, write) => connection.reply(bytesMax, write),
  };
}
