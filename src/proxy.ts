import { randomUUID } from 'node:crypto';
import * as fs from 'node:fs';
import type { Logger } from 'pino';
import { openDirectoryStore } from './blobs/directory-store.ts';
import type { Config } from './config.ts';
import { isRouseError } from './errors.ts';
import { openDisk } from './formats/open-disk.ts';
import { createQcow2Writer } from './formats/qcow2-output.ts';
import { createRawWriter } from './formats/raw-output.ts';
import type { Clock } from './lib/clock.ts';
import { nodeFiles } from './lib/node-files.ts';
import type { Random } from './lib/random.ts';
import { connectNbd } from './nbd/client.ts';
import { createNfsServer } from './nfs/server.ts';
import { Clones } from './proxy/clones.ts';
import { type JoinedProxy, readJoined } from './proxy/joined.ts';
import { listenForRemoteServer, listenForServer } from './proxy/listen.ts';
import { LocalProxy } from './proxy/local-proxy.ts';
import type { NbdAccess, NbdDisk } from './proxy/runner.ts';
import { createVault, openVault } from './vault/vault.ts';

/** The proxy's stores and listeners, joined. */
export interface ProxyOptions {
  readonly config: Config;
  readonly log: Logger;
  readonly version: string;
  readonly clock: Clock;
  readonly random: Random;
}

/** What it says of itself when it is ready, and how it ends. */
export interface OpenedProxy {
  readonly facts: Readonly<Record<string, string | number>>;
  close(): Promise<void>;
}

export async function openProxy(options: ProxyOptions): Promise<OpenedProxy> {
  const { config, log, version, clock } = options;
  const joined = readJoined(config.joinedFile);
  const vault = await openTheVault(options);
  const { addresses, port: nfsPort, mountPort, portmap, portmapPort } = config.nfs;
  const listen = { addresses, nfsPort, mountPort, portmap, portmapPort };
  const nfs = createNfsServer({ clock, log, listen });
  const proxy = new LocalProxy({
    name: joined?.name ?? config.proxyName,
    version,
    vault,
    vaultPath: config.vault,
    clones: new Clones({
      around: {
        files: nodeFiles,
        clock,
        random: options.random,
        bootId: bootId(),
        openDisk: (root) => vault.openDisk(root),
        onDamage: (damage) => log.error({ damage }, 'a block in the vault or a clone is bad'),
      },
      directory: config.clones,
      vault,
      log,
    }),
    exportsFile: config.exportsFile,
    files: nodeFiles,
    nfs,
    clock,
    openFile: (path, format) => openDisk(path, format === undefined ? {} : { format }),
    openNbd: openNbdDisk,
    // What it takes to speak with vCenter is loaded by who needs it: a killed proxy is back sooner.
    openReader: async (pass) => {
      const { VsphereReader } = await import('./hypervisors/vsphere/reader.ts');
      return new VsphereReader(pass, clock);
    },
    createTarget: (path, format, sizeBytes) =>
      format === 'raw'
        ? createRawWriter(path, sizeBytes, { replace: true })
        : createQcow2Writer(path, sizeBytes, { replace: true }),
  });
  await proxy.start();
  const app = await listenForServer(proxy, config.proxySocket, (error, call) =>
    log.error({ err: error, call }, 'a call failed in a way nobody foresaw'),
  );
  const line = joined === undefined ? undefined : await openLine(options, joined, proxy);
  return {
    facts: {
      NFS: `port ${nfs.nfsPort}, portmapper ${nfs.portmapper}`,
      Vault: config.vault,
      ...line?.facts,
    },
    close: async () => {
      await line?.close();
      // Ending the jobs answers those who wait for their news, which lets the listener close.
      await Promise.all([app.close(), proxy.close()]);
    },
  };
}

/** An enrolled proxy is called over TLS, and says how it is; the socket is for this machine. */
async function openLine(
  { config, log, clock }: ProxyOptions,
  joined: JoinedProxy,
  proxy: LocalProxy,
): Promise<OpenedProxy> {
  const { ServerLink } = await import('./proxy/server-link.ts');
  const at = { port: joined.callPort, identity: joined.identity };
  const listener = await listenForRemoteServer(proxy, at, (error, call) =>
    log.error({ err: error, call }, 'a call failed in a way nobody foresaw'),
  );
  const link = new ServerLink({
    file: config.joinedFile,
    joined,
    callPort: listener.port,
    clock,
    log,
    status: () => proxy.status(),
    renewed: ({ identity }) => listener.show(identity),
  });
  link.start();
  return {
    facts: { Proxy: `${joined.name} of ${joined.server}`, Calls: `port ${listener.port}` },
    close: async () => {
      await Promise.all([link.close(), listener.close()]);
    },
  };
}

async function openTheVault({ config, clock, random }: ProxyOptions) {
  const store = await openDirectoryStore({
    files: nodeFiles,
    directory: config.vault,
    random,
  });
  await createVault(store, { random }).catch((error: unknown) => {
    if (!isRouseError(error, 'already-exists')) throw error;
  });
  return openVault({
    store,
    index: { files: nodeFiles, directory: config.index },
    cacheBytes: config.cacheBytes,
    clock,
    random,
  });
}

async function openNbdDisk(access: NbdAccess): Promise<NbdDisk> {
  const { changesContext, ...where } = access;
  if (changesContext === undefined) return connectNbd(where);
  const disk = await connectNbd({ ...where, metaContexts: [changesContext] });
  return Object.assign(disk, {
    changes: (offset: number, length: number) =>
      disk.changedExtents(changesContext, offset, length),
  });
}

/** Changes whenever the machine boots (random(4)); where there is none, every start counts as one. */
function bootId(): string {
  try {
    return fs.readFileSync('/proc/sys/kernel/random/boot_id', 'utf8').trim();
  } catch {
    return `start-${randomUUID()}`;
  }
}
