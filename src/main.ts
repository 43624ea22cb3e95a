import * as fs from 'node:fs';
import { createRequire } from 'node:module';
import pino, { type Logger } from 'pino';
import { createApi } from './api/server.ts';
import { openDirectoryStore } from './blobs/directory-store.ts';
import { type Config, configOf, type UpOptions } from './config.ts';
import { isRouseError, toRouseError } from './errors.ts';
import { createQcow2Writer } from './formats/qcow2-output.ts';
import { openDisk } from './formats/open-disk.ts';
import { createRawWriter } from './formats/raw-output.ts';
import { systemClock } from './lib/clock.ts';
import { nodeFiles } from './lib/node-files.ts';
import { systemRandom } from './lib/random.ts';
import { connectNbd } from './nbd/client.ts';
import { createNfsServer } from './nfs/server.ts';
import { Clones } from './proxy/clones.ts';
import { listenForServer } from './proxy/listen.ts';
import { LocalProxy } from './proxy/local-proxy.ts';
import type { NbdAccess, NbdDisk } from './proxy/runner.ts';
import { openServer } from './server.ts';
import { type ChildMessage, startUp } from './supervisor.ts';
import { createVault, openVault } from './vault/vault.ts';

/**
 * The composition root: configuration → stores → services → listeners, for each role. Every role
 * is one function; nothing above it knows how its parts are made.
 */
export const version: string = (
  createRequire(import.meta.url)('../package.json') as { version: string }
).version;

/** `rouse up`: both roles in processes of their own, until told to stop. */
export async function runUp(options: UpOptions, say: (line: string) => void): Promise<void> {
  const up = await startUp(options, systemClock, say);
  for (const [name, value] of Object.entries(up.facts)) say(`${`${name}:`.padEnd(14)}${value}`);
  say('Rouse is up. Stop it with Ctrl-C.');
  const stop = () => void up.stop();
  process.once('SIGINT', stop);
  process.once('SIGTERM', stop);
  await up.ended;
}

/** `rouse proxy`: the data path. Runs until SIGTERM, or until its supervisor is gone. */
export async function runProxy(options: UpOptions): Promise<void> {
  await runRole('proxy', options, async (config, log) => {
    const vault = await openTheVault(config);
    const nfs = createNfsServer({
      clock: systemClock,
      log,
      listen: {
        addresses: config.nfs.addresses,
        nfsPort: config.nfs.port,
        mountPort: config.nfs.mountPort,
        portmap: config.nfs.portmap,
        portmapPort: config.nfs.portmapPort,
      },
    });
    const proxy = new LocalProxy({
      name: config.proxyName,
      version,
      vault,
      vaultPath: config.vault,
      clones: new Clones({
        files: nodeFiles,
        directory: config.clones,
        maker: { create: () => { throw new Error('soon'); }, open: () => { throw new Error('soon'); }, discard: async () => undefined },
        saveset: (id) => vault.saveset(id),
        log,
      }),
      exportsFile: config.exportsFile,
      files: nodeFiles,
      nfs,
      clock: systemClock,
      openFile: (path, format) => openDisk(path, format === undefined ? {} : { format }),
      openNbd: (access) => openNbdDisk(access),
      createTarget: (path, format, sizeBytes) =>
        format === 'raw'
          ? createRawWriter(path, sizeBytes, { replace: true })
          : createQcow2Writer(path, sizeBytes, { replace: true }),
    });
    await proxy.start();
    const app = await listenForServer(proxy, config.proxySocket, (error, call) =>
      log.error({ err: error, call }, 'a call failed in a way nobody foresaw'),
    );
    return {
      facts: { NFS: `port ${nfs.nfsPort}, portmapper ${nfs.portmapper}`, Vault: config.vault },
      close: async () => {
        await app.close();
        await proxy.close();
      },
    };
  });
}

/** `rouse server`: control. */
export async function runServer(options: UpOptions): Promise<void> {
  await runRole('server', options, async (config, log) => {
    const server = await openServer({
      config,
      log,
      version,
      clock: systemClock,
      random: systemRandom,
    });
    const api = await createApi({
      services: server.services,
      log,
      random: systemRandom,
      version,
      listen: { socket: config.serverSocket },
    });
    const entry = { socket: config.serverSocket, pid: process.pid, version };
    fs.writeFileSync(config.serverFile, `${JSON.stringify(entry)}\n`, { mode: 0o600 });
    return {
      facts: { Server: config.serverSocket },
      close: async () => {
        fs.rmSync(config.serverFile, { force: true });
        await api.close();
        await server.close();
      },
    };
  });
}

interface Running {
  readonly facts: Readonly<Record<string, string | number>>;
  close(): Promise<void>;
}

async function runRole(
  role: string,
  options: UpOptions,
  start: (config: Config, log: Logger) => Promise<Running>,
): Promise<void> {
  const log = pino({ name: `rouse-${role}` });
  const tell = (message: ChildMessage) => process.send?.(message);
  let running: Running;
  try {
    running = await start(configOf(options), log);
  } catch (thrown) {
    const error = toRouseError(thrown, `the ${role}`);
    log.error({ err: thrown }, error.message);
    tell({ type: 'failed', problem: error.toProblem() });
    process.exitCode = error.exitCode;
    process.disconnect?.();
    return;
  }
  tell({ type: 'ready', facts: running.facts });
  await toldToStop();
  log.info({}, 'stopping');
  await running.close();
  if (process.connected) process.disconnect();
}

/** SIGTERM, or the end of the supervisor: nobody would restart or stop us any more. */
function toldToStop(): Promise<void> {
  return new Promise((resolve) => {
    process.once('SIGTERM', resolve);
    process.once('SIGINT', () => undefined);
    process.once('disconnect', resolve);
  });
}

async function openTheVault(config: Config) {
  const store = await openDirectoryStore({
    files: nodeFiles,
    directory: config.vault,
    random: systemRandom,
  });
  await createVault(store, { random: systemRandom }).catch((error: unknown) => {
    if (!isRouseError(error, 'already-exists')) throw error;
  });
  return openVault({
    store,
    index: { files: nodeFiles, directory: config.index },
    cacheBytes: config.cacheBytes,
    clock: systemClock,
    random: systemRandom,
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
