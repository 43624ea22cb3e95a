import { createHash } from 'node:crypto';
import { existsSync } from 'node:fs';
import { mkdir, mkdtemp, readdir, readFile, rename, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { cacheDirectory } from '../kernel.ts';
import { attempt, run } from '../processes.ts';

/**
 * Builds a Go program of the lab from Debian's packages alone, without a network, and keeps it in
 * `.cache/vcenter/` under the hash of its sources, the compiler's version and govmomi's: about 15 s
 * the first time.
 */
export async function buildGo(sources: string): Promise<string> {
  const key = createHash('sha256').update(await toolVersions());
  for (const directory of [sources, join(import.meta.dirname, 'certificate')])
    for (const name of (await readdir(directory)).sort())
      if (/(?<!_test)\.go$/.test(name))
        key.update(`${name}\0`).update(await readFile(join(directory, name)));
  const base = join(cacheDirectory, 'vcenter');
  const program = join(base, `go-${key.digest('hex').slice(0, 24)}`);
  if (existsSync(program)) return program;
  await mkdir(base, { recursive: true });
  const work = await mkdtemp(join(base, 'building-'));
  try {
    const built = join(work, 'program');
    await run('go', ['build', '-o', built, '.'], {
      cwd: sources,
      env: goEnvironment(base),
      timeoutMs: 600_000,
    });
    await rename(built, program);
  } finally {
    await rm(work, { recursive: true, force: true });
  }
  return program;
}

/** For `go build`, `go vet` and `go test`: nothing is fetched, nothing is written elsewhere. */
export function goEnvironment(base = join(cacheDirectory, 'vcenter')): Record<string, string> {
  return {
    GO111MODULE: 'off',
    GOPATH: `${join(base, 'gopath')}:/usr/share/gocode`,
    GOCACHE: join(base, 'go-build'),
    GOFLAGS: '',
    GOTELEMETRY: 'off',
    CGO_ENABLED: '0',
  };
}

async function toolVersions(): Promise<string> {
  const packages = ['golang-go', 'golang-github-vmware-govmomi-dev'];
  const { code, stdout } = await attempt('dpkg-query', ['-W', ...packages]);
  if (code !== 0)
    throw new Error(`${packages.join(' and ')} are needed: run scripts/setup --vsphere`);
  return stdout;
}
