import * as fs from 'node:fs';
import { createRequire } from 'node:module';
import pino, { type Logger } from 'pino';
import { type Config, configOf, type UpOptions } from './config.ts';
import { toRouseError } from './errors.ts';
import { systemClock } from './lib/clock.ts';
import { systemRandom } from './lib/random.ts';
import { type ChildMessage, startUp } from './supervisor.ts';

/**
 * The composition root: configuration → stores → services → listeners, for each role. proxy.ts and
 * server.ts join the parts of theirs and are loaded by that process alone: a proxy that was killed
 * is back sooner. Nothing above knows how parts are made.
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
    const { openProxy } = await import('./proxy.ts');
    return openProxy({ config, log, version, clock: systemClock, random: systemRandom });
  });
}

/** `rouse server`: control. */
export async function runServer(options: UpOptions): Promise<void> {
  await runRole('server', options, async (config, log) => {
    const { openServer } = await import('./server.ts');
    const { createApi } = await import('./api/server.ts');
    const parts = { log, version, random: systemRandom };
    const server = await openServer({ ...parts, config, clock: systemClock });
    const listen = { socket: config.serverSocket };
    const api = await createApi({ ...parts, services: server.services, listen });
    const entry = { socket: config.serverSocket, pid: process.pid, version };
    fs.writeFileSync(config.serverFile, `${JSON.stringify(entry)}\n`, { mode: 0o600 });
    return {
      facts: { Server: config.serverSocket, ...server.facts },
      close: async () => {
        fs.rmSync(config.serverFile, { force: true });
        await api.close();
        await server.close();
      },
    };
  });
}

/** What a role has opened, and how all of it is closed. */
interface Running {
  readonly facts: Readonly<Record<string, string | number>>;
  close(): Promise<void>;
}

async function runRole(
  role: string,
  options: UpOptions,
  start: (config: Config, log: Logger) => Promise<Running>,
): Promise<void> {
  // Ctrl-C reaches the whole process group: the supervisor alone decides what it means.
  process.on('SIGINT', () => undefined);
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
    process.once('disconnect', resolve);
  });
}
