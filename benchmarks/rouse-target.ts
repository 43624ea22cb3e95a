import { spawn } from 'node:child_process';
import type { ChildProcess } from 'node:child_process';
import { createWriteStream } from 'node:fs';
import { mkdir } from 'node:fs/promises';
import { join } from 'node:path';
import { configOf } from '../src/config.ts';
import type { UpOptions } from '../src/config.ts';
import { httpClient } from '../src/lib/http-client.ts';
import { proxyClient } from '../src/proxy/client.ts';
import { nodeFlags } from '../src/supervisor.ts';
import { runJob } from '../src/proxy/jobs-client.ts';
import type { Proxy } from '../src/proxy/port.ts';

/**
 * A proxy of ours in its own process, as `rouse up` starts it, with one disk taken in: what is
 * measured is the product, not its parts.
 */
export interface RouseTarget {
  readonly proxy: Proxy;
  readonly pid: number;
  readonly nfsPort: number;
  readonly mountPort: number;
  /** Clones the saveset and exports it; answers the disk's path below the export. */
  publish(cloneId: string): Promise<string>;
  stop(): Promise<void>;
}

export interface RouseTargetOptions {
  readonly data: string;
  readonly image: string;
  readonly cacheBytes: number;
  readonly cores: string;
}

const mtree = 'bench';
const machine = { id: 'bench-machine', name: 'bench' };

export async function startRouse(options: RouseTargetOptions): Promise<RouseTarget> {
  const up: UpOptions = {
    data: options.data,
    nfsPort: 0,
    portmap: 'off',
    listen: ['127.0.0.1'],
    cacheBytes: options.cacheBytes,
  };
  const config = configOf(up);
  for (const folder of [config.data, config.run, config.logs]) {
    await mkdir(folder, { recursive: true, mode: 0o700 });
  }
  const child = await startRole(up, options.cores, join(config.logs, 'bench-proxy.log'));
  const http = httpClient({ url: `unix:${config.proxySocket}`, peer: 'proxy' });
  const proxy = proxyClient((path, body, timeoutMs) => http.post(path, body, { timeoutMs }));
  const savesetId = await takeIn(proxy, options.image);
  const { nfs } = await proxy.status();
  return {
    proxy,
    pid: child.pid ?? 0,
    nfsPort: nfs.port,
    mountPort: nfs.mountPort,
    publish: async (cloneId) => {
      const clone = await proxy.createClone({ cloneId, mtree, savesetId, folder: 'bench' });
      const exported = await proxy.createExport({ cloneId, clients: ['127.0.0.1'] });
      const disk = clone.disks.find(({ name }) => name === 'vda');
      if (disk === undefined) throw new Error('the clone has no disk vda');
      return `${exported.path}/${disk.path}`;
    },
    stop: async () => {
      http.close();
      await endChild(child);
    },
  };
}

async function takeIn(proxy: Proxy, image: string): Promise<string> {
  const known = await proxy.savesets();
  if (known[0] !== undefined) return known[0].id;
  await proxy.createMtree(mtree, 'lz4').catch(() => undefined);
  const spec = {
    kind: 'import',
    id: 'bench-import',
    mtree,
    machine,
    disks: [{ name: 'vda', path: image, format: 'raw' }],
    takenAtMs: Date.now(),
  } as const;
  const job = await runJob(proxy, spec, new AbortController().signal, () => undefined);
  if (job.result?.kind !== 'saveset') throw new Error('the import gave no saveset');
  return job.result.saveset.id;
}

function startRole(up: UpOptions, cores: string, log: string): Promise<ChildProcess> {
  const entry = new URL('../src/cli/main.ts', import.meta.url).pathname;
  const output = createWriteStream(log);
  const flags = ['--disable-warning=ExperimentalWarning', ...nodeFlags('proxy')];
  const child = spawn(
    'taskset',
    ['-c', cores, process.execPath, ...flags, entry, 'role', 'proxy'],
    {
      stdio: ['ignore', 'pipe', 'pipe', 'ipc'],
      env: { ...process.env, ROUSE_UP_OPTIONS: JSON.stringify(up) },
    },
  );
  child.stdout?.pipe(output, { end: false });
  child.stderr?.pipe(output, { end: false });
  return new Promise((resolve, reject) => {
    child.once('error', reject);
    child.once('exit', (code) => reject(new Error(`the proxy ended (${code}); see ${log}`)));
    child.on('message', (message) => {
      const type =
        typeof message === 'object' && message !== null && 'type' in message ? message.type : '';
      if (type === 'ready') resolve(child);
      else if (type === 'failed') reject(new Error(`the proxy did not start; see ${log}`));
    });
  });
}

async function endChild(child: ChildProcess): Promise<void> {
  if (child.exitCode !== null || child.signalCode !== null) return;
  const gone = new Promise<void>((resolve) => child.once('exit', () => resolve()));
  child.kill('SIGTERM');
  const timer = setTimeout(() => child.kill('SIGKILL'), 10_000);
  await gone;
  clearTimeout(timer);
}
