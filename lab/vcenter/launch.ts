import { spawn } from 'node:child_process';
import type { ChildProcess } from 'node:child_process';
import { X509Certificate } from 'node:crypto';
import { closeSync, openSync } from 'node:fs';
import { mkdir, readFile, rm } from 'node:fs/promises';
import { join, resolve } from 'node:path';
import { createInterface } from 'node:readline';

export interface Vcenter {
  /** `https://ADDRESS:PORT/sdk`. */
  readonly url: string;
  readonly user: string;
  readonly password: string;
  /** SHA-256 of its certificate, `AA:BB:…`. */
  readonly fingerprint: string;
  /** Path of its certificate (PEM), which signed itself. */
  readonly certificate: string;
  /** Ends it; what it made itself in its directory is gone. */
  stop(): Promise<void>;
}

const login = { user: 'rouse@vsphere.local', password: 'wake up, 7 <machines> & more' } as const;

/** Starts a vCenter program and waits for the line with which it says that it is ready. */
export async function launch(
  program: string,
  args: readonly string[],
  place: string,
): Promise<{ readonly vcenter: Vcenter; readonly said: Readonly<Record<string, string>> }> {
  const directory = resolve(place);
  const temporary = join(directory, 'vcenter-tmp');
  const logPath = join(directory, 'vcenter.log');
  await mkdir(temporary, { recursive: true });
  const log = openSync(logPath, 'a');
  // It ends when its standard input does, and that ends with us, however we end.
  const own = ['-directory', directory, '-user', login.user, '-password', login.password];
  const child = spawn(program, [...args, ...own], {
    stdio: ['pipe', 'pipe', log],
    cwd: directory,
    env: { ...process.env, TMPDIR: temporary },
  });
  closeSync(log);
  child.stdin?.on('error', () => undefined);
  const stop = async () => {
    await ended(child);
    await rm(temporary, { recursive: true, force: true });
  };
  try {
    const said = await firstLine(child, logPath);
    const certificate = said['certificate'] ?? '';
    const { fingerprint256 } = new X509Certificate(await readFile(certificate));
    const vcenter = { ...login, url: said['url'] ?? '', fingerprint: fingerprint256, certificate };
    child.unref();
    return { vcenter: { ...vcenter, stop }, said };
  } catch (error) {
    await stop();
    throw error;
  }
}

async function firstLine(child: ChildProcess, logPath: string): Promise<Record<string, string>> {
  if (child.stdout === null) throw new Error('a vCenter without standard output');
  const lines = createInterface({ input: child.stdout });
  const line = await new Promise<string | undefined>((resolve, reject) => {
    child.once('error', reject);
    lines.once('line', resolve).once('close', () => resolve(undefined));
  });
  if (line === undefined) {
    const text = await readFile(logPath, 'utf8');
    throw new Error(`the vCenter did not start:\n${text.slice(-2000)}`);
  }
  lines.close();
  const message: unknown = JSON.parse(line);
  return message as Record<string, string>;
}

const patienceMs = 10_000;

/** Closes its standard input, at which it tidies up and ends; insists when it does not. */
async function ended(child: ChildProcess): Promise<void> {
  if (child.exitCode !== null || child.signalCode !== null || child.pid === undefined) return;
  const gone = new Promise<void>((resolve) => child.once('exit', () => resolve()));
  child.ref();
  child.stdin?.end();
  const timer = setTimeout(() => child.kill('SIGKILL'), patienceMs);
  await gone;
  clearTimeout(timer);
}
