import { createClone, openClone, type Clone, type Damage } from '../datastore/clone.ts';
import type { CloneSurroundings, NewClone } from '../datastore/clone.ts';
import type { DiskRoot, VaultDisk } from '../vault/api.ts';
import { FakeClock } from './fake-clock.ts';
import { ForgetfulFiles } from './forgetful-files.ts';
import { MemoryVaultDisk } from './memory-vault-disk.ts';
import { SeededRandom } from './seeded-random.ts';

export const clones = '/clones';

/** One clone of a machine with two small disks, on a forgetful file system. */
export class CloneWorld {
  files: ForgetfulFiles;
  boot = 1;
  readonly clock = new FakeClock();
  readonly random: SeededRandom;
  readonly damages: Damage[] = [];
  readonly bases = new Map<string, MemoryVaultDisk>();
  readonly spec: NewClone;

  constructor(seed = 1, diskBytes: readonly number[] = [1024 * 1024, 65 * 512]) {
    this.files = new ForgetfulFiles(seed);
    this.random = new SeededRandom(seed + 1);
    const disks = diskBytes.map((sizeBytes, i) => {
      const root: DiskRoot = { hash: `${i}`.repeat(64), depth: 1, sizeBytes };
      const fill = (target: Uint8Array, offset: number) => {
        for (let at = 0; at < target.length; at++) target[at] = baseByte(i, offset + at);
      };
      this.bases.set(
        root.hash,
        new MemoryVaultDisk(sizeBytes, fill, () => this.random.chance(0.2)),
      );
      return { name: `vd${'ab'[i]}`, root };
    });
    const files = [{ name: 'domain.xml', bytes: Buffer.from('<domain/>\n') }];
    this.spec = {
      cloneId: 'Recover-p1-abc',
      mtree: 'main',
      savesetId: 's1',
      folder: 'web01',
      disks,
      files,
    };
  }

  around(): CloneSurroundings {
    return {
      files: this.files,
      clock: this.clock,
      random: this.random,
      bootId: `boot-${this.boot}`,
      openDisk: async (root): Promise<VaultDisk> => {
        const base = this.bases.get(root.hash);
        if (base === undefined) throw new Error(`no disk ${root.hash}`);
        return base;
      },
      onDamage: (damage) => this.damages.push(damage),
      tuning: { reserveBytes: 64 * 1024 },
    };
  }

  async make(): Promise<Clone> {
    await this.files.makeDirectory(clones);
    await this.files.syncDirectory('/');
    await createClone(this.around(), clones, this.spec);
    return this.open();
  }

  open(): Promise<Clone> {
    return openClone(this.around(), clones, this.spec.cloneId);
  }
}

export function baseByte(disk: number, offset: number): number {
  return (Math.floor(offset / 512) * 13 + offset + disk * 101 + 1) & 0xff;
}
