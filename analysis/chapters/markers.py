"""Marker genes of the cell types of human blood and pancreas, as the literature has them.

Blood: the markers of the Azimuth PBMC reference (Hao et al. 2021), level 1, and level 2 for monocytes and platelets.
Pancreas: the markers of the Azimuth pancreas reference (ten for each type); for the types of the pancreas proper also
those of PanglaoDB for human (Franzén et al. 2019, release of 27 March 2020). None was chosen by what a network does
with it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

_BLOOD = {
    "CD4 T": "IL7R MAL LTB CD4 LDHB TPT1 TRAC TMSB10 CD3D CD3G",
    "CD8 T": "CD8B CD8A CD3D TMSB10 HCST CD3G LINC02446 CTSW CD3E TRAC",
    "NK": "NKG7 KLRD1 TYROBP GNLY FCER1G PRF1 CD247 KLRF1 CST7 GZMB",
    "B": "CD79A RALGPS2 CD79B MS4A1 BANK1 CD74 TNFRSF13C HLA-DQA1 IGHM MEF2C",
    "DC": "CD74 HLA-DPA1 HLA-DPB1 HLA-DQA1 CCDC88A HLA-DRA HLA-DMA CST3 HLA-DQB1 HLA-DRB1",
    "CD14 Mono": "S100A9 CTSS S100A8 LYZ VCAN S100A12 IL1B CD14 G0S2 FCN1",
    "CD16 Mono": "CDKN1C FCGR3A PTPRC LST1 IER5 MS4A7 RHOC IFITM3 AIF1 HES4",
    "Mk": "PPBP PF4 NRGN GNG11 CAVIN2 SDPR TUBB1 CLU HIST1H2AC RGS18 GP9",  # SDPR is CAVIN2's former name
}

_PANCREAS = {
    "alpha": """GCG TTR PPP1R1A CRYBA2 TM4SF4 MAFB GC GPX3 PCSK2 PEMT
        ALDH1A1 ARX CHGA DPP4 F10 FAP FEV FXYD5 GLP1R GLS GPR119 IRX1 IRX2 KCNK16 KLHL41 LDB2 LOXL4 NEUROD1 NKX2-2
        NKX6-1 PAX6 PCSK1 PGR PLCE1 POU3F4 PRRG2 PTGER3 PYY RESP18 RFX6 RGS4 SCGB2A1 SCGN SH3GL2 SLC30A8 SLC38A5
        SMARCA1 SMIM24 UCP2""",
    "beta": """IAPP INS DLK1 INS-IGF2 G6PC2 HADH ADCYAP1 GSN NPTX2 C12orf75
        BMP5 CASR CD40 EDARADD EFNA5 EZH1 FFAR2 FXYD2 GCGR GJD2 HAMP HOPX IGF2 ISL1 JPH3 LMX1A MAFA MAFB MEG3 NEUROD1
        NKX2-2 NKX6-1 NKX6-2 NPY NTRK1 PAX4 PAX6 PCSK1 PCSK2 PDX1 PFKFB2 PIR RGS16 RIMS1 SCGB2A1 SCGN SH3GL2 SIX2 SIX3
        SLC2A2 SLC30A8 SMAD9 STXBP5 SYT13 TGFBR3""",
    "delta": """SST RBP4 SERPINA1 RGS2 PCSK1 SEC11C HHEX LEPR MDK LY6H
        BAIAP3 BCHE BHLHE41 CASR EDN3 EHF ETV1 FFAR4 FRZB FXYD2 GABRB3 GABRG2 GHSR GPC5-AS1 IAPP ISL1 KCNK16 LCORL
        MS4A8 NPTX2 PAX4 PCSK9 PDX1 POU3F1 PRG4 RESP18 SCGN UCP2 UNC5B""",
    "gamma": """PPY AQP3 MEIS2 ID2 GPC5-AS1 CARTPT PRSS23 ETV1 PPY2 TUBB2A
        ABCC9 APOBEC2 ARX CHN2 CMTM8 EGR3 ENTPD2 FGB FXYD2 ISL1 LMO3 MEIS1 NEUROD1 PAX6 PPY2P PTGFR PXK SCGB2A1 SCGN
        SEMA3E SERTM1 SLITRK6 THSD7A ZNF503""",
    "epsilon": """BHMT VSTM2L PHGR1 TM4SF5 ANXA13 ASGR1 DEFB1 GHRL COL22A1 OLFML3
        ACSL1 ADAMTS6 AFF3 APOH ARX BMP4 C2orf54 CALCR CD109 COL12A1 CORIN COX6A2 ELOVL2 EYA4 FAM124A FAXDC2 FRZB
        GHRLOS HMGCS2 HRH2 ITGA4 KRT8 MYO1A NKX2-2 NPY1R OPRK1 PCSK6 PTGER4 S100A6 SLC6A16 SLC7A9 SPINK1 SPTSSB THSD4
        VTN XYLB""",
    "acinar": """REG1A PRSS1 CTRB2 CTRB1 REG1B CELA3A PRSS2 REG3A CPA1 CLPS
        AKR1C3 ALDOB AMY2B ANGPTL4 ANPEP C15orf48 CEL CELA1 CELA2A CELA3B CFB CPA2 CPB1 CTRC CXCL17 DUOXA2 GDF15 GSTA1
        GSTA2 KLK1 LGALS2 LYZ MUC1 OLFM4 PDZK1IP1 PLA2G1B PNLIP PNLIPRP1 PRSS3 PTF1A RARRES2 RBPJL RNASE1 SERPINA3
        SPINK1 SYCN UBD ZG16""",
    "ductal": """SPP1 MMP7 IGFBP7 KRT7 ANXA4 SERPINA1 LCN2 CFTR KRT19 SERPING1
        AKR1C3 ALDH1A3 AMBP AQP1 CCL2 CFB CLDN1 CLDN10 CLDN4 CTSH CXCL2 DCDC2 DEFB1 GDF15 HHEX HNF1B KRT20 LAMB3
        LGALS4 MUC1 ONECUT1 PDLIM3 PDX1 PERP PIGR S100A10 SERPINA3 SERPINA5 SLC3A1 SLPI TACSTD2 TFF1 TFF2 TSPAN8 VTCN1
        WFDC2""",
    "endothelial": "PLVAP RGCC ENG PECAM1 ESM1 SERPINE1 CLDN5 STC1 MMP1 GNG11",
    "macrophage": "ACP5 APOE HLA-DRA TYROBP LAPTM5 SDS FCER1G C1QC C1QB SRGN",
    "schwann": "NGFR CDH19 UCN2 SOX10 S100A1 PLP1 TSPAN11 WNT16 SOX2 TFAP2A",
    "activated stellate": "COL1A1 COL1A2 COL6A3 COL3A1 TIMP3 TIMP1 CTHRC1 SFRP2 BGN LUM",
    "quiescent stellate": "RGS5 C11orf96 FABP4 CSRP2 IL24 ADIRF NDUFA4L2 GPX3 IGFBP4 ESAM",
}

_OTHER_NAMES = {
    "cd4": "cd4 t",
    "cd8": "cd8 t",
    "natural killer": "nk",
    "dendritic": "dc",
    "cd14 monocyte": "cd14 mono",
    "classical monocyte": "cd14 mono",
    "cd16 monocyte": "cd16 mono",
    "fcgr3a mono": "cd16 mono",
    "fcgr3a monocyte": "cd16 mono",
    "non classical monocyte": "cd16 mono",
    "megakaryocyte": "mk",
    "platelet": "mk",
    "pp": "gamma",
    "duct": "ductal",
    "immune": "macrophage",
}


def known_markers(cell_types: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """The marker genes, by type, of those types that are known here.

    Names as the data have them: `CD14+ Monocytes` and `Natural killer cells` are understood. Empty unless at least half
    of the types are of blood, or of the pancreas: an `alpha` among strangers need not be a cell of the islets.
    """
    tissues = [_of(_BLOOD, cell_types), _of(_PANCREAS, cell_types)]
    found = max(tissues, key=len)
    return found if 2 * len(found) >= len(cell_types) else {}


def _of(tissue: Mapping[str, str], cell_types: Sequence[str]) -> dict[str, tuple[str, ...]]:
    by_plain = {_plain(name): tuple(genes.split()) for name, genes in tissue.items()}
    return {name: by_plain[_plain(name)] for name in cell_types if _plain(name) in by_plain}


def _plain(name: str) -> str:
    """Lower case, words only, singular, without `cell`."""
    words = re.sub(r"[\W_]+", " ", name.casefold()).strip()
    words = re.sub(r"\b(\w{2,})s\b$", r"\1", words)
    words = re.sub(r"\s+cell$", "", words)
    return _OTHER_NAMES.get(words, words)
