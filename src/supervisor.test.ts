import assert from 'node:assert/strict';
import * as fs from 'node:fs';
import { tmpdir } from 'node:os';
import * as path from 'node:path';
import { test } from 'node:test';
import type { Clock } from './lib/clock.ts';
import { startUp, type Up } from './supervisor.ts';

/**
 * Small children in place of the two roles: each says that it is ready and waits. What else it does
 * is in a file beside it, named after the role, which is read at each start.
 */
const childProgram = `
import { appendFileSync, existsSync, readFileSync } from 'node:fs';
const role = process.argv[3];
const told = import.meta.dirname + '/' + role + '.does';
const does = existsSync(told) ? readFileSync(told, 'utf8').trim() : 'run';
appendFileSync(import.meta.dirname + '/starts', role + ' ' + process.pid + '\\n');
const problem = { code: 'port-taken', title: 'port 2049 is taken', status: 500, advice: 'Stop it.' };
if (does === 'fail') {
  process.send({ type: 'failed', problem });
  process.exitCode = 10;
  process.disconnect();
} else if (does === 'die') process.exit(3);
else {
  process.on('SIGTERM', () => {
    appendFileSync(import.meta.dirname + '/starts', role + ' stopped\\n');
    process.exit(0);
  });
  process.on('disconnect', () => process.exit(0));
  setInterval(() => undefined, 1_000);
  process.send({ type: 'ready', facts: { [role]: process.pid } });
}
`;

class Scene {
  readonly directory = fs.mkdtempSync(path.join(tmpdir(), 'rouse-up-'));
  readonly entry = path.join(this.directory, 'child.mjs');
  readonly said: string[] = [];
  /** Pauses before a restart, which are not slept through. */
  readonly pausesMs: number[] = [];
  #heard: () => void = () => undefined;

  constructor() {
    fs.writeFileSync(this.entry, childProgram);
  }

  readonly clock: Clock = {
    now: () => 0,
    monotonic: () => 0,
    sleep: (milliseconds, signal) => {
      // Only the patience of a stop can be told to end before it began to be needed.
      if (milliseconds >= 20_000) {
        return new Promise((_resolve, reject) => {
          signal?.addEventListener('abort', () => reject(signal.reason), { once: true });
        });
      }
      this.pausesMs.push(milliseconds);
      return new Promise((resolve) => setImmediate(resolve));
    },
  };

  start(): Promise<Up> {
    const say = (line: string) => {
      this.said.push(line);
      this.#heard();
    };
    return startUp({ data: path.join(this.directory, 'data') }, this.clock, say, this.entry);
  }

  tell(role: 'server' | 'proxy', does: 'run' | 'fail' | 'die'): void {
    fs.writeFileSync(path.join(this.directory, `${role}.does`), does);
  }

  starts(): string[] {
    return fs.readFileSync(path.join(this.directory, 'starts'), 'utf8').trim().split('\n');
  }

  async heard(line: RegExp, times = 1): Promise<void> {
    while (this.said.filter((one) => line.test(one)).length < times) {
      await new Promise<void>((resolve) => (this.#heard = resolve));
    }
  }

  end(): void {
    fs.rmSync(this.directory, { recursive: true, force: true });
  }
}

async function withScene(work: (scene: Scene) => Promise<void>): Promise<void> {
  const scene = new Scene();
  try {
    await work(scene);
  } finally {
    scene.end();
  }
}

test('both roles start, the proxy first, and stop, the proxy last', () =>
  withScene(async (scene) => {
    const up = await scene.start();
    assert.deepEqual(Object.keys(up.facts), ['proxy', 'server']);
    await up.stop();
    await up.ended;
    const order = scene.starts().map((line) => line.replace(/\d+/, 'started'));
    assert.deepEqual(order, ['proxy started', 'server started', 'server stopped', 'proxy stopped']);
  }));

test('a crashed role is started again, and the other one notices nothing', () =>
  withScene(async (scene) => {
    const up = await scene.start();
    try {
      process.kill(Number(up.facts['server']), 'SIGKILL');
      await scene.heard(/The server runs again/);
      assert.match(scene.said[0] ?? '', /The server ended \(killed by SIGKILL\).*server\.log/);
      assert.equal(scene.starts().filter((line) => line.startsWith('server')).length, 2);
      assert.equal(scene.starts().filter((line) => line.startsWith('proxy')).length, 1);
    } finally {
      await up.stop();
    }
    await up.ended;
  }));

test('one that crashes again and again is started again with growing pauses', () =>
  withScene(async (scene) => {
    const up = await scene.start();
    try {
      scene.tell('proxy', 'die');
      process.kill(Number(up.facts['proxy']), 'SIGKILL');
      await scene.heard(/The proxy did not start/, 3);
      scene.tell('proxy', 'run');
      await scene.heard(/The proxy runs again/);
      assert.deepEqual(scene.pausesMs.slice(0, 4), [50, 100, 200, 400]);
    } finally {
      await up.stop();
    }
    await up.ended;
  }));

test('a role that cannot start the first time says why, and nothing is left running', () =>
  withScene(async (scene) => {
    scene.tell('server', 'fail');
    await assert.rejects(scene.start(), { code: 'port-taken', message: 'port 2049 is taken' });
    assert.equal(scene.starts().at(-1), 'proxy stopped');
    scene.tell('server', 'die');
    await assert.rejects(scene.start(), {
      code: 'internal',
      message: 'the server ended at once (exit code 3)',
    });
    scene.tell('server', 'run');
    const up = await scene.start();
    await up.stop();
    await up.ended;
  }));

test('a second one on the same data is refused', () =>
  withScene(async (scene) => {
    const up = await scene.start();
    try {
      await assert.rejects(scene.start(), {
        code: 'busy',
        message: new RegExp(`data is in use by process ${process.pid}`),
      });
    } finally {
      await up.stop();
    }
    await up.ended;
  }));
