import { describeDomain } from '../../formats/libvirt-xml.ts';
import { isRouseError } from '../../errors.ts';
import type { ConfigureSpec } from '../port.ts';

/** What a machine gets when nothing says more: enough for any small server. */
const defaults = { memoryMiB: 2048, processors: 2 } as const;

/**
 * A .vmx for a machine of which only libvirt's XML, or nothing, was saved. Disks come on SATA: its
 * driver is in every firmware, and in every guest since 2007, which VMware's controllers are not.
 */
export function defaultVmx(
  spec: ConfigureSpec,
  saved: string | undefined,
  say: (change: string) => void,
): string {
  const known = described(spec, saved, say);
  const { memoryMiB, processors, isEfi, cards } = known;
  const lines = [
    ['.encoding', 'UTF-8'],
    ['config.version', '8'],
    ['virtualHW.version', '13'],
    ['displayName', spec.name],
    ['guestOS', 'other3xlinux-64'],
    ['firmware', isEfi ? 'efi' : 'bios'],
    ['memSize', String(memoryMiB)],
    ['numvcpus', String(processors)],
    ['pciBridge0.present', 'TRUE'],
    ...[4, 5, 6, 7].flatMap((bridge) => [
      [`pciBridge${bridge}.present`, 'TRUE'],
      [`pciBridge${bridge}.virtualDev`, 'pcieRootPort'],
      [`pciBridge${bridge}.functions`, '8'],
    ]),
    ['hpet0.present', 'TRUE'],
    ['vmci0.present', 'TRUE'],
    ['svga.present', 'TRUE'],
    ['sata0.present', 'TRUE'],
    ...cards.flatMap(({ mac, network }, index) => [
      [`ethernet${index}.present`, 'TRUE'],
      [`ethernet${index}.virtualDev`, 'e1000e'],
      [`ethernet${index}.networkName`, network],
      ...(mac === undefined
        ? [[`ethernet${index}.addressType`, 'generated']]
        : [
            [`ethernet${index}.addressType`, 'static'],
            [`ethernet${index}.address`, mac],
            [`ethernet${index}.checkMACAddress`, 'false'],
          ]),
    ]),
    ...(known.uuid === undefined ? [] : [['uuid.bios', known.uuid]]),
  ];
  return lines
    .map(([key = '', value = '']) => `${key} = "${value.replaceAll('"', '|22')}"\n`)
    .join('');
}

function described(spec: ConfigureSpec, saved: string | undefined, say: (change: string) => void) {
  const nothing = {
    memoryMiB: defaults.memoryMiB,
    processors: defaults.processors,
    isEfi: false,
    cards: [{ mac: undefined, network: 'VM Network' }] as readonly Card[],
    uuid: undefined as string | undefined,
  };
  if (saved !== undefined && /^\s*</u.test(saved)) {
    try {
      const domain = describeDomain(saved, `the saved configuration of ${spec.name}`);
      say('the machine was one of libvirt: its hardware is rebuilt as vSphere has it');
      const memoryMiB = Math.ceil((domain.memoryBytes ?? 0) / (4 * 1024 * 1024)) * 4;
      return {
        memoryMiB: memoryMiB > 0 ? memoryMiB : defaults.memoryMiB,
        processors: domain.processors ?? defaults.processors,
        isEfi: domain.isEfi,
        cards: domain.interfaces.map(({ mac, network }) => ({
          mac,
          network: network ?? 'VM Network',
        })),
        uuid: domain.uuid,
      };
    } catch (error) {
      if (!isRouseError(error)) throw error;
      say(`${error.message}`);
    }
  }
  say('no usable configuration was saved: a machine with 2 GiB and SATA disks is made');
  return nothing;
}

interface Card {
  readonly mac: string | undefined;
  readonly network: string;
}
