import { createHash } from 'node:crypto';
import * as os from 'node:os';
import * as path from 'node:path';
import { RouseError } from './errors.ts';
import { familyOf } from './lib/addresses.ts';

/** What an administrator decides when Rouse starts; everything else is derived here. */
export interface UpOptions {
  /** The one directory that holds everything. */
  readonly data: string;
  /** TCP port of NFS; 0 takes a free one. Hypervisors expect 2049. */
  readonly nfsPort?: number;
  /** TCP port of MOUNT; the same as `nfsPort` when undefined. */
  readonly mountPort?: number;
  readonly portmap?: 'auto' | 'bind' | 'register' | 'off';
  readonly portmapPort?: number;
  /** Addresses that NFS listens on; all of the machine when undefined. */
  readonly listen?: readonly string[];
  /** Bound of the block cache in bytes. */
  readonly cacheBytes?: number;
  /** Directory of the vault; `<data>/vault` when undefined. */
  readonly vault?: string;
  /** Addresses that hypervisor hosts reach this proxy at, the preferred first. */
  readonly address?: readonly string[];
  /** TCP port at which proxies of other machines join; undefined: none can. 0 takes a free one. */
  readonly tlsPort?: number;
  /** Where that listens; all of the machine when undefined. */
  readonly tlsListen?: string;
}

export interface Config {
  readonly data: string;
  readonly vault: string;
  readonly index: string;
  readonly clones: string;
  readonly exportsFile: string;
  readonly catalogFile: string;
  readonly scratch: string;
  /** Passwords of hypervisors. */
  readonly secrets: string;
  readonly logs: string;
  readonly run: string;
  readonly lockFile: string;
  readonly serverSocket: string;
  readonly serverFile: string;
  readonly proxySocket: string;
  /** Authority and certificate of the server. */
  readonly tlsDirectory: string;
  /** undefined: proxies of other machines cannot join. */
  readonly tls: { readonly port: number; readonly host: string } | undefined;
  /** What makes it the directory of an enrolled proxy, and what joining leaves until then. */
  readonly joinedFile: string;
  readonly joiningFile: string;
  readonly proxyName: string;
  /** Empty: any of this machine. */
  readonly proxyAddresses: readonly string[];
  readonly nfs: {
    readonly port: number;
    readonly mountPort: number;
    readonly portmap: 'auto' | 'bind' | 'register' | 'off';
    readonly portmapPort: number;
    readonly addresses: readonly string[];
  };
  readonly cacheBytes: number;
}

export function configOf(options: UpOptions): Config {
  const data = path.resolve(options.data);
  const run = path.join(data, 'run');
  const nfsPort = port('--nfs-port', options.nfsPort ?? 2049);
  return {
    data,
    vault: path.resolve(options.vault ?? path.join(data, 'vault')),
    index: path.join(data, 'index'),
    clones: path.join(data, 'clones'),
    exportsFile: path.join(data, 'exports.json'),
    catalogFile: path.join(data, 'catalog.sqlite'),
    scratch: path.join(data, 'scratch'),
    secrets: path.join(data, 'secrets'),
    logs: path.join(data, 'log'),
    run,
    lockFile: path.join(data, 'lock'),
    serverSocket: socketPath(run, 'server.sock'),
    serverFile: path.join(run, 'server.json'),
    proxySocket: socketPath(run, 'proxy.sock'),
    tlsDirectory: path.join(data, 'tls'),
    tls:
      options.tlsPort === undefined
        ? undefined
        : {
            port: port('--tls-port', options.tlsPort),
            host: address('--tls-listen', options.tlsListen ?? '::'),
          },
    joinedFile: path.join(data, 'joined.json'),
    joiningFile: path.join(data, 'joining.json'),
    proxyName: 'local',
    proxyAddresses: (options.address ?? []).map((text) => address('--address', text)),
    nfs: {
      port: nfsPort,
      mountPort: port('--mount-port', options.mountPort ?? nfsPort),
      portmap: options.portmap ?? 'auto',
      portmapPort: port('--portmap-port', options.portmapPort ?? 111),
      addresses: options.listen ?? ['::'],
    },
    cacheBytes: options.cacheBytes ?? defaultCacheBytes(),
  };
}

function address(option: string, text: string): string {
  if (familyOf(text) !== undefined) return text;
  throw new RouseError('bad-request', `${option} "${text}" is not an IP address`, {
    advice: 'Give an address of this machine, such as 192.0.2.7 or 2001:db8::7.',
  });
}

function port(option: string, value: number): number {
  if (Number.isInteger(value) && value >= 0 && value <= 65_535) return value;
  throw new RouseError('bad-request', `${option} ${value} is not a port`, {
    advice: 'Give a number from 1 to 65535, or 0 for any free port.',
  });
}

/** An eighth of the machine's memory: the rest belongs to the page cache, which holds the packs. */
function defaultCacheBytes(): number {
  const eighth = Math.floor(os.totalmem() / 8);
  const largest = 4 * 1024 ** 3;
  return Math.max(64 * 1024 ** 2, Math.min(largest, eighth));
}

/** sun_path of unix(7) holds 107 bytes: a longer path moves to the temporary directory. */
export function socketPath(directory: string, name: string): string {
  const wanted = path.join(directory, name);
  if (Buffer.byteLength(wanted) <= 107) return wanted;
  const digest = createHash('sha256').update(wanted).digest('hex').slice(0, 16);
  return path.join(os.tmpdir(), `rouse-${digest}-${name}`);
}
