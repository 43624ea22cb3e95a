import { existsSync } from 'node:fs';
import { mkdir, readdir, readFile, rename, rm } from 'node:fs/promises';
import { basename, join, resolve } from 'node:path';
import { attempt, run } from './processes.ts';

/**
 * Debian's cloud kernel, downloaded once through apt and kept with its modules in `.cache/`, so
 * that later builds need no network.
 */
export interface Kernel {
  readonly release: string;
  /** The bootable image. */
  readonly image: string;
  /** `lib/modules/<release>`, with modules.dep. */
  readonly modules: string;
}

export const cacheDirectory = resolve(import.meta.dirname, '..', '.cache');

let found: Promise<Kernel> | undefined;

export function debianKernel(): Promise<Kernel> {
  found ??= findKernel();
  return found;
}

async function findKernel(): Promise<Kernel> {
  const base = join(cacheDirectory, 'kernels');
  await mkdir(base, { recursive: true });
  const known = (await readdir(base)).filter((name) => !name.startsWith('.')).sort();
  const newest = known.at(-1);
  if (newest !== undefined) return kernelIn(join(base, newest));
  const directory = join(base, `.new-${process.pid}`);
  await rm(directory, { recursive: true, force: true });
  await mkdir(directory);
  try {
    const archive = await downloadKernel(directory);
    await run('dpkg-deb', ['-x', archive, directory]);
    const release = (await readdir(join(directory, 'lib/modules')))[0] ?? '';
    await run('depmod', ['-b', directory, release]);
    await rm(archive);
    await rename(directory, join(base, release)).catch(async (error: unknown) => {
      // Another process was quicker; its kernel is as good.
      if (!existsSync(join(base, release))) throw error;
      await rm(directory, { recursive: true });
    });
    return kernelIn(join(base, release));
  } catch (error) {
    await rm(directory, { recursive: true, force: true });
    throw error;
  }
}

function kernelIn(directory: string): Kernel {
  const release = basename(directory);
  return {
    release,
    image: join(directory, 'boot', `vmlinuz-${release}`),
    modules: join(directory, 'lib/modules', release),
  };
}

/** linux-image-cloud-amd64 is empty and depends on the real one. */
async function downloadKernel(directory: string): Promise<string> {
  const name = (await realKernelPackage()) ?? (await afterUpdate());
  await run('apt-get', ['-qq', '-o', 'APT::Sandbox::User=root', 'download', name], {
    cwd: directory,
    timeoutMs: 300_000,
  }).catch(async () => {
    await run('apt-get', ['-qq', 'update'], { timeoutMs: 300_000 });
    await run('apt-get', ['-qq', '-o', 'APT::Sandbox::User=root', 'download', name], {
      cwd: directory,
      timeoutMs: 300_000,
    });
  });
  const archive = (await readdir(directory)).find((file) => file.endsWith('.deb'));
  if (archive === undefined) throw new Error(`apt-get download ${name} left no .deb file`);
  return join(directory, archive);
}

async function afterUpdate(): Promise<string> {
  await run('apt-get', ['-qq', 'update'], { timeoutMs: 300_000 });
  const name = await realKernelPackage();
  if (name === undefined)
    throw new Error('apt knows no linux-image-cloud-amd64: are the sources of Debian 12 in place?');
  return name;
}

async function realKernelPackage(): Promise<string | undefined> {
  const answer = await attempt('apt-cache', ['depends', 'linux-image-cloud-amd64']);
  return /Depends: (linux-image-\S+-cloud-amd64)\b/.exec(answer.stdout)?.[1];
}

/** Paths below `modules` of these modules and all they need, in the order to load them. */
export async function modulesInOrder(kernel: Kernel, wanted: readonly string[]): Promise<string[]> {
  const needs = new Map<string, string[]>();
  for (const line of (await readFile(join(kernel.modules, 'modules.dep'), 'utf8')).split('\n')) {
    const [path, rest] = line.split(':');
    if (path !== undefined && rest !== undefined)
      needs.set(path, rest.trim().split(' ').filter(Boolean));
  }
  const byName = new Map([...needs.keys()].map((path) => [basename(path, '.ko'), path]));
  const order: string[] = [];
  const add = (path: string): void => {
    if (order.includes(path)) return;
    for (const need of (needs.get(path) ?? []).toReversed()) add(need);
    order.push(path);
  };
  for (const name of wanted) {
    const path = byName.get(name);
    if (path !== undefined) add(path);
  }
  return order;
}

/** The shared libraries that programs are linked with, and the loader, by absolute path. */
export async function librariesOf(programs: readonly string[]): Promise<string[]> {
  const said = await run('ldd', [...programs]);
  const paths = [...said.matchAll(/(?:=> |^\s+)(\/\S+) \(0x/gm)].map((match) => match[1] ?? '');
  return [...new Set(paths)];
}
