import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { systemClock } from '../../src/lib/clock.ts';
import { createNfsServer, type ListenOptions, type NfsServer } from '../../src/nfs/server.ts';

/**
 * Real NFS clients take fixed ports (111) and talk to rpcbind over a file in /run. A test file runs
 * itself again in a network and mount namespace of its own, where both are free.
 */
const inside = process.env['ROUSE_TEST_WORLD'] === '1';

/** True inside; outside it runs `file` inside, and asserts that all of its tests passed. */
export async function insideOwnWorld(file: string): Promise<boolean> {
  if (inside) return true;
  const { NODE_TEST_CONTEXT: _context, ...environment } = process.env;
  const script = 'ip link set lo up && mount -t tmpfs tmpfs /run && exec "$@"';
  const asUser = process.getuid?.() === 0 ? [] : ['-r'];
  const result = await run(
    'unshare',
    ['-n', '-m', ...asUser, 'sh', '-c', script, 'sh', process.execPath, '--test', file],
    { env: { ...environment, ROUSE_TEST_WORLD: '1' }, timeoutMs: 180_000 },
  );
  assert.equal(result.code, 0, result.output);
  return false;
}

export interface RunResult {
  readonly code: number | null;
  readonly stdout: Buffer;
  /** Both streams, as text. */
  readonly output: string;
}

export function run(
  command: string,
  args: readonly string[],
  options: { env?: NodeJS.ProcessEnv; timeoutMs?: number; input?: Buffer } = {},
): Promise<RunResult> {
  return new Promise((resolve, reject) => {
    const child = spawn(command, args, {
      env: options.env ?? process.env,
      timeout: options.timeoutMs ?? 30_000,
      stdio: ['pipe', 'pipe', 'pipe'],
    });
    const stdout: Buffer[] = [];
    const both: Buffer[] = [];
    child.stdout.on('data', (chunk: Buffer) => {
      stdout.push(chunk);
      both.push(chunk);
    });
    child.stderr.on('data', (chunk: Buffer) => both.push(chunk));
    child.on('error', reject);
    child.on('close', (code) => {
      resolve({ code, stdout: Buffer.concat(stdout), output: Buffer.concat(both).toString() });
    });
    child.stdin.on('error', () => undefined);
    child.stdin.end(options.input);
  });
}

/** Runs a command that has to succeed; its standard output. */
export async function must(command: string, args: readonly string[]): Promise<Buffer> {
  const result = await run(command, args);
  assert.equal(result.code, 0, `${command} ${args.join(' ')}\n${result.output}`);
  return result.stdout;
}

export const silentLog = { info: () => undefined, warn: () => undefined };

export async function startServer(listen: Partial<ListenOptions> = {}): Promise<NfsServer> {
  const server = createNfsServer({
    clock: systemClock,
    log: silentLog,
    listen: {
      addresses: ['0.0.0.0', '::'],
      nfsPort: 2049,
      mountPort: 2049,
      portmap: 'bind',
      ...listen,
    },
  });
  await server.start();
  return server;
}
