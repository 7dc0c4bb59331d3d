// The camera as a scanner: a small picture after the other is looked at, and outlines follow the cards.
(demo => {
  const {texts, canvasOf, jpegOf} = demo;
  const wanted = {facingMode: {ideal: 'environment'}, width: {ideal: 1280}, height: {ideal: 960}};
  const lookedAt = 640; // Longer side in pixels of what is sent
  const forgotten = 1500; // Milliseconds after which outlines that nothing renewed go

  const frameOf = (video, side) => {
    const scale = Math.min(1, side / Math.max(video.videoWidth, video.videoHeight));
    const canvas = canvasOf(video.videoWidth * scale, video.videoHeight * scale);
    canvas.getContext('2d').drawImage(video, 0, 0, canvas.width, canvas.height);
    return canvas;
  };

  demo.hasCamera = () => Boolean(navigator.mediaDevices?.getUserMedia);

  // Starts the camera in an element with a video; throws if it may not or there is none.
  demo.startCamera = async live => {
    const [video, overlay] = [live.querySelector('video'), live.querySelector('.overlay')];
    const caption = live.querySelector('.caption');
    const stream = await navigator.mediaDevices.getUserMedia({video: wanted, audio: false});
    const stopping = new AbortController();
    const stop = () => {
      stopping.abort();
      stream.getTracks().forEach(track => track.stop());
      video.srcObject = null;
      overlay.innerHTML = '';
      live.hidden = true;
    };
    live.hidden = false;
    video.srcObject = stream;
    caption.textContent = texts.script.looking;
    await video.play().catch(() => null);
    const fit = () => { // The outlines lie on the picture, which may be narrower than its box
      const scale = Math.min(video.clientWidth / video.videoWidth, video.clientHeight / video.videoHeight);
      Object.assign(overlay.style, {width: `${video.videoWidth * scale}px`, height: `${video.videoHeight * scale}px`});
    };

    let renewed = performance.now();
    const show = answer => {
      if (answer) {
        fit();
        overlay.innerHTML = answer.overlay;
        const said = answer.summary || texts.script.looking;
        if (caption.textContent !== said) caption.textContent = said;
        renewed = performance.now();
        live.dataset.looks = Number(live.dataset.looks || 0) + 1;
      } else if (performance.now() - renewed > forgotten) {
        overlay.innerHTML = '';
        caption.textContent = navigator.onLine ? texts.script.looking : texts.script.offline;
      }
    };
    const watch = async () => {
      while (!stopping.signal.aborted) {
        const started = performance.now();
        if (video.videoWidth && !document.hidden) {
          const blob = await jpegOf(frameOf(video, lookedAt), 0.75);
          const answer = blob && await demo.look(blob, stopping.signal);
          if (!stopping.signal.aborted) show(answer);
          if (!answer) await new Promise(done => setTimeout(done, 400)); // Busy, or offline
        }
        const rest = Math.max(30, 100 - (performance.now() - started));
        await new Promise(done => setTimeout(done, rest));
      }
    };
    watch();
    const keep = async () => {
      const blob = await jpegOf(frameOf(video, 1600), 0.92);
      return new File([blob], 'camera.jpg', {type: 'image/jpeg'});
    };
    return {keep, stop};
  };
})(window.cardDemo);
